"""`python -m kst_jax.benchmark`, which is `kst-benchmark`."""

from kst_jax.benchmark.command import main

if __name__ == "__main__":
    main()
