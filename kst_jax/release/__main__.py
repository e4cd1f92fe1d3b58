"""`python -m kst_jax.release`, which is `kst-release`."""

from kst_jax.release.command import main

if __name__ == "__main__":
    main()
