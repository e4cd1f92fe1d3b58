"""Studies: methods compared under one protocol, by `python -m kst_jax.study`."""
