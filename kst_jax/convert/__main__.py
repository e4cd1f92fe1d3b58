"""`python -m kst_jax.convert`, which is `kst-convert`."""

from kst_jax.convert.command import main

if __name__ == "__main__":
    main()
