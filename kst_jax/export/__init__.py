"""A trained network as one file that needs nothing but JAX."""
