"""Runs: each file has a `get_config()`, and its docstring is the recipe."""
