"""Bicubic enlargement of images, as a product with one small matrix per axis."""

import jax
import jax.numpy as jnp
import numpy as np

# Keys' coefficient. `jax.image.resize` uses -0.5; the published network uses -0.75.
_KEYS = -0.75


def bicubic(image: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Enlarges (B, h, w, 2) to (B, *shape, 2): half-pixel centres, clamped edges."""
    rows, columns = (
        _matrix(old, new) for old, new in zip(image.shape[1:3], shape, strict=True)
    )
    return jnp.einsum("Hh,BhwC,Ww->BHWC", rows, image, columns)


def _matrix(old: int, new: int) -> np.ndarray:
    """Returns interpolation weights (new, old)."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.floor(centre) + tap
        np.add.at(
            weights,
            (np.arange(new), np.clip(index, 0, old - 1).astype(int)),
            _cubic(np.abs(centre - index)),
        )
    return weights.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    near = (_KEYS + 2) * x**3 - (_KEYS + 3) * x**2 + 1
    far = _KEYS * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
