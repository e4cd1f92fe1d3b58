"""Readers of scans, one module for each format."""
