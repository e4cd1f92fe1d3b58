"""Tells what scans are and what is wrong with them, before a run refuses them."""
