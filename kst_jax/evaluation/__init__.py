"""Test slices reconstructed, scored, written and drawn."""
