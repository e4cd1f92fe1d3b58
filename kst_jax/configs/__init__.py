"""The configs, which in a clone lie in its folder `configs`, beside the package.

An installed package has that folder in the place of this one (pyproject.toml), so that
both find `kst_jax.configs.demo`, and there is one copy of each.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[2] / "configs")]
