"""Comparisons with code of others, side by side; docs/performance.md has results."""
