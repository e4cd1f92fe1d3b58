"""`python train.py`, which is `kst-train` of the installed package."""

from kst_jax.training.command import main

if __name__ == "__main__":
    main()
