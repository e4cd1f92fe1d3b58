"""The configs. In a clone they are in the folder `configs`, beside the package.

An installed package has that folder in place of this one (pyproject.toml). Either way,
`kst_jax.configs.demo` is found and each config exists once.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[2] / "configs")]
