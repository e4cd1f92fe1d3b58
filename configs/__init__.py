"""Configs of runs: each file has a `get_config()`; its docstring is the recipe."""
