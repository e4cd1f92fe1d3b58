"""Measures the time, memory and operations of a network."""
