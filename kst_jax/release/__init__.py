"""A run's parameters alone, to give to others."""
