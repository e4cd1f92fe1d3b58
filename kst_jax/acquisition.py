"""The forward model of a scan: how an image gives its samples.

An acquisition A takes an image to its samples, y = A x = M F S x: S multiplies the
image by the sensitivity map of each coil, F is the centred orthonormal Fourier
transform and M the sampling mask. Without maps S is the identity. Networks,
zero-filling and scores use k-space only through an acquisition, so they need not know
how a scan was sampled, nor by how many coils.

Images and spectra are two-channel arrays (..., H, W, 2) as in `kst_jax.fourier`. With
maps, spectra, samples and k-space have an axis of coils, (..., C, H, W, 2), and images
do not.
"""

import flax.struct
import jax
import jax.numpy as jnp

from kst_jax.fourier import fft2c, ifft2c, to_channels, to_complex


@flax.struct.dataclass
class Acquisition:
    """Cartesian sampling, of one coil or of several.

    Without maps its rows are orthonormal: A A^H is M, the identity on sampled points.

    Attributes:
      mask: (..., H, W), True where sampled, by all coils.
      maps: sensitivity maps (..., C, H, W, 2), with unit norm over the coils or zero at
        each pixel (`kst_jax.coils`); None for one coil that sees the image itself.
    """

    mask: jax.Array
    maps: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the images."""
        rows, columns = self.mask.shape[-2:]
        return rows, columns

    def sampled(self, spectrum: jax.Array) -> jax.Array:
        """Applies M: a spectrum where sampled, zero elsewhere."""
        return jnp.where(self._points, spectrum, 0)

    def spectrum(self, image: jax.Array) -> jax.Array:
        """Applies F S: the fully sampled spectrum of an image (..., H, W, 2)."""
        if self.maps is None:
            return fft2c(image)
        seen = to_complex(self.maps) * to_complex(image)[..., None, :, :]
        return fft2c(to_channels(seen))

    def image(self, spectrum: jax.Array) -> jax.Array:
        """Applies (F S)^H: the image (..., H, W, 2) of a spectrum, coils combined."""
        if self.maps is None:
            return ifft2c(spectrum)
        seen = to_complex(self.maps).conj() * to_complex(ifft2c(spectrum))
        return to_channels(seen.sum(-3))

    def forward(self, image: jax.Array) -> jax.Array:
        """Applies A: the samples of an image (..., H, W, 2), zero where not sampled."""
        return self.sampled(self.spectrum(image))

    def adjoint(self, kspace: jax.Array) -> jax.Array:
        """Applies A^H: the zero-filled image (..., H, W, 2) of k-space samples."""
        return self.image(self.sampled(kspace))

    def normal(self, image: jax.Array) -> jax.Array:
        """Applies A^H A to an image (..., H, W, 2)."""
        return self.image(self.forward(image))

    def measured(self, kspace: jax.Array) -> jax.Array:
        """Returns all that data consistency needs of k-space: here the k-space."""
        return kspace

    def unweighted(self) -> "Acquisition":
        """Returns the acquisition whose samples all have the weight 1: this one."""
        return self

    def fill(self, spectrum: jax.Array, kspace: jax.Array) -> jax.Array:
        """Puts the measured values of k-space back into a spectrum, unchanged."""
        return jnp.where(self._points, kspace, spectrum)

    def completed(self, spectrum: jax.Array, kspace: jax.Array) -> jax.Array:
        """Applies hard data consistency to the spectrum of an image.

        Without maps this is `fill`. With maps, see `consistent`.

        Args:
          spectrum: F x of a predicted image, (..., H, W, 2) with and without maps.
          kspace: measured k-space.
        """
        if self.maps is None:
            return self.fill(spectrum, kspace)
        return fft2c(self.consistent(ifft2c(spectrum), kspace))

    def consistent(self, image: jax.Array, kspace: jax.Array) -> jax.Array:
        """Applies hard data consistency: the image's samples become the measured ones.

        With maps, the samples of the combined image only come closer to them, since no
        image need give the samples of all coils.

        Args:
          image: predicted image (..., H, W, 2).
          kspace: measured k-space.
        """
        return self.image(self.fill(self.spectrum(image), kspace))

    @property
    def _points(self) -> jax.Array:
        """The mask with axes for coils, if there are any, and for the channels."""
        if self.maps is None:
            return self.mask[..., None]
        return self.mask[..., None, :, :, None]
