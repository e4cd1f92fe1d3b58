"""The forward model of a scan as one object: what was measured of an image.

An acquisition A takes an image to its samples, y = A x = M F x: F is the centred
orthonormal Fourier transform and M the sampling mask. Networks, zero-filling and scores
touch k-space through it alone, so that they need not know how a scan was sampled.

Images and spectra are two-channel arrays (..., H, W, 2) as in `kst_jax.fourier`.
"""

import flax.struct
import jax
import jax.numpy as jnp

from kst_jax.fourier import fft2c, ifft2c


@flax.struct.dataclass
class Acquisition:
    """Cartesian sampling of one coil.

    Its rows are orthonormal: A A^H is the identity on sampled points, that is the mask.

    Attributes:
      mask: (..., H, W), True where sampled.
    """

    mask: jax.Array

    def sampled(self, spectrum: jax.Array) -> jax.Array:
        """M: the spectrum (..., H, W, 2) where sampled, zero elsewhere."""
        return jnp.where(self.mask[..., None], spectrum, 0)

    def forward(self, image: jax.Array) -> jax.Array:
        """A: the k-space samples (..., H, W, 2) of an image, zero where not sampled."""
        return self.sampled(fft2c(image))

    def adjoint(self, kspace: jax.Array) -> jax.Array:
        """A^H: the zero-filled image (..., H, W, 2) of k-space samples."""
        return ifft2c(self.sampled(kspace))

    def fill(self, spectrum: jax.Array, kspace: jax.Array) -> jax.Array:
        """Puts the measured values back into a spectrum, unaltered.

        Args:
          spectrum: predicted spectrum (..., H, W, 2).
          kspace: measured k-space (..., H, W, 2).
        """
        return jnp.where(self.mask[..., None], kspace, spectrum)

    def consistent(self, image: jax.Array, kspace: jax.Array) -> jax.Array:
        """Hard data consistency: the image whose samples are the measured ones.

        Args:
          image: predicted image (..., H, W, 2).
          kspace: measured k-space (..., H, W, 2).
        """
        return ifft2c(self.fill(fft2c(image), kspace))
