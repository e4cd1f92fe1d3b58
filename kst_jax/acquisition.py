"""The forward model of a scan: how an image gives its samples.

An acquisition A takes an image to its samples, y = A x = M F x: F is the centred
orthonormal Fourier transform and M the sampling mask. Networks, zero-filling and scores
use k-space only through an acquisition, so they need not know how a scan was sampled.

Images and spectra are two-channel arrays (..., H, W, 2) as in `kst_jax.fourier`.
"""

import flax.struct
import jax
import jax.numpy as jnp

from kst_jax.fourier import fft2c, ifft2c


@flax.struct.dataclass
class Acquisition:
    """Cartesian sampling of one coil.

    Its rows are orthonormal: A A^H is M, the identity on sampled points.

    Attributes:
      mask: (..., H, W), True where sampled.
    """

    mask: jax.Array

    def sampled(self, spectrum: jax.Array) -> jax.Array:
        """Applies M: a spectrum (..., H, W, 2) where sampled, zero elsewhere."""
        return jnp.where(self.mask[..., None], spectrum, 0)

    def forward(self, image: jax.Array) -> jax.Array:
        """Applies A: the samples (..., H, W, 2) of an image, zero where not sampled."""
        return self.sampled(fft2c(image))

    def adjoint(self, kspace: jax.Array) -> jax.Array:
        """Applies A^H: the zero-filled image (..., H, W, 2) of k-space samples."""
        return ifft2c(self.sampled(kspace))

    def fill(self, spectrum: jax.Array, kspace: jax.Array) -> jax.Array:
        """Puts the measured values back into a spectrum, unchanged.

        Args:
          spectrum: predicted spectrum (..., H, W, 2).
          kspace: measured k-space (..., H, W, 2).
        """
        return jnp.where(self.mask[..., None], kspace, spectrum)

    def consistent(self, image: jax.Array, kspace: jax.Array) -> jax.Array:
        """Applies hard data consistency: the image's samples become the measured ones.

        Args:
          image: predicted image (..., H, W, 2).
          kspace: measured k-space (..., H, W, 2).
        """
        return ifft2c(self.fill(fft2c(image), kspace))
