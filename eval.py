"""`python eval.py`, which is `kst-eval` of the installed package."""

from kst_jax.evaluation.command import main

if __name__ == "__main__":
    main()
