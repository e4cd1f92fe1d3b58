"""Runs: each file has a `get_config()` whose docstring is its recipe."""
