"""`python -m kst_jax.doctor`, which is `kst-doctor`."""

from kst_jax.doctor.command import main

if __name__ == "__main__":
    main()
