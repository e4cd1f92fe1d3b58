"""The forward model of a scan that samples k-space off the grid.

Its A takes an image to its samples on a trajectory, y = A x = N S x: S multiplies the
image by the sensitivity map of each coil, and N is the Fourier transform at the
trajectory's points (`kst_jax.nufft`). Samples have an inner product that weights them:
by their density compensation, so that the adjoint is the gridded image, or all by 1.

Images are two-channel arrays (B, H, W, 2) as in `kst_jax.fourier`; samples are
(B, N, 2), or (B, C, N, 2) of several coils.
"""

import dataclasses
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from kst_jax import nufft
from kst_jax.conjugate_gradients import solve
from kst_jax.fourier import fft2c, ifft2c, to_channels, to_complex

# Steps towards the samples that `consistent` takes; with density compensation the
# spectrum of A^H A is flat, so a few suffice.
_STEPS = 4
# Of a predicted image against such samples.
DAMPING = 0.1


@flax.struct.dataclass
class NonCartesian:
    """Sampling on a trajectory, of one coil or of several.

    Make one by `on`, which prepares A^H A.

    Attributes:
      trajectory: points (B, N, 2), row then column, in units of 1 / field of view.
      weights: of the samples in inner products, (B, N).
      transfer: A^H A without maps, (B, 2 H, 2 W); see `kst_jax.nufft.point_spread`.
      maps: sensitivity maps (B, C, H, W, 2); None for one coil that sees the image.
      damping: weight of a predicted image against the samples, in `consistent`; a
        scalar above 0.
    """

    trajectory: jax.Array
    weights: jax.Array
    transfer: jax.Array
    maps: jax.Array | None = None
    damping: jax.Array | float = DAMPING

    @classmethod
    def on(
        cls,
        trajectory: jax.Array,
        weights: jax.Array,
        shape: tuple[int, int],
        maps: jax.Array | None = None,
    ) -> Self:
        """Returns the acquisition of images of a shape (H, W) on a trajectory."""
        spread = jax.vmap(lambda w, t: nufft.point_spread(w, t, shape))
        return cls(trajectory, weights, spread(weights, trajectory), maps)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the images."""
        rows, columns = self.transfer.shape[-2:]
        return rows // 2, columns // 2

    def unweighted(self) -> "NonCartesian":
        """Returns the acquisition whose samples all have the weight 1."""
        ones = jnp.ones_like(self.weights)
        return self.on(self.trajectory, ones, self.shape, self.maps)

    def damped(self, damping: jax.Array | float) -> "NonCartesian":
        """Returns the acquisition with another damping."""
        return dataclasses.replace(self, damping=damping)

    def forward(self, image: jax.Array) -> jax.Array:
        """Applies A: the samples of an image (B, H, W, 2)."""
        samples = jax.vmap(nufft.to_samples)
        return to_channels(samples(self._seen(image), self.trajectory))

    def adjoint(self, kspace: jax.Array) -> jax.Array:
        """Applies A^H: the weighted samples, gridded to an image (B, H, W, 2)."""
        weights = self.weights if self.maps is None else self.weights[:, None]
        gridded = jax.vmap(lambda y, t: nufft.to_image(y, t, self.shape))
        return self._combined(gridded(to_complex(kspace) * weights, self.trajectory))

    def normal(self, image: jax.Array) -> jax.Array:
        """Applies A^H A to an image (B, H, W, 2), by two Fourier transforms."""
        (rows, columns), transfer = self.shape, self.transfer
        seen = jnp.fft.fft2(self._seen(image), s=transfer.shape[-2:])
        if self.maps is not None:
            transfer = transfer[:, None]
        return self._combined(jnp.fft.ifft2(seen * transfer)[..., :rows, :columns])

    def measured(self, kspace: jax.Array) -> jax.Array:
        """Returns all that `consistent` needs of the samples: A^H y."""
        return self.adjoint(kspace)

    def completed(self, spectrum: jax.Array, measured: jax.Array) -> jax.Array:
        """Applies `consistent` to the spectrum (B, H, W, 2) of an image."""
        return fft2c(self.consistent(ifft2c(spectrum), measured))

    def consistent(self, image: jax.Array, measured: jax.Array) -> jax.Array:
        """Applies data consistency: the image's samples come closer to the measured.

        A few conjugate gradients towards the z that minimises |A z - y|^2 + damping
        |z - x|^2. Off the grid no value can be put back as measured.

        Args:
          image: predicted image x (B, H, W, 2).
          measured: see `measured`.
        """
        right = measured - self.normal(image)
        return image + solve(lambda z: self.normal(z) + self.damping * z, right, _STEPS)

    def _seen(self, image: jax.Array) -> jax.Array:
        """Applies S: what each coil sees, complex."""
        if self.maps is None:
            return to_complex(image)
        return to_complex(self.maps) * to_complex(image)[:, None]

    def _combined(self, seen: jax.Array) -> jax.Array:
        """Applies S^H."""
        if self.maps is None:
            return to_channels(seen)
        return to_channels((to_complex(self.maps).conj() * seen).sum(1))
