"""`python -m kst_jax.export`, which is `kst-export`."""

from kst_jax.export.command import main

if __name__ == "__main__":
    main()
