"""Releases a run's parameters, to share with others."""
