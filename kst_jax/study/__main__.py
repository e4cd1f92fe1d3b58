"""`python -m kst_jax.study`, which is `kst-study`."""

from kst_jax.study.command import main

if __name__ == "__main__":
    main()
