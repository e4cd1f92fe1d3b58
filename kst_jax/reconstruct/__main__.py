"""`python -m kst_jax.reconstruct`, which is `kst-reconstruct`."""

from kst_jax.reconstruct.command import main

if __name__ == "__main__":
    main()
