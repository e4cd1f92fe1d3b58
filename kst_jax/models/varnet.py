"""E2E-VarNet: gradient steps on k-space, each with a U-Net on the combined image.

A. Sriram et al., "End-to-end variational networks for accelerated MRI reconstruction"
(MICCAI 2020, arXiv 2004.06688), in the form of its authors' code, fastMRI. A cascade
changes the spectrum k of all coils to

    k - w M (k - k0) - E(U(R k)),

with the measured k0, the mask M, a learned weight w, a U-Net U, R the combination of
the coils' images by the sensitivity maps and E its adjoint.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax.acquisition import Acquisition
from kst_jax.errors import InputError
from kst_jax.fourier import ifft2c
from kst_jax.models import unet
from kst_jax.models.config import (
    REMATS,
    ModelConfig,
    require_option,
    require_positive,
)
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.models.rematerialisation import POLICIES
from kst_jax.tokens import Batch

MAPS = ("learned", "given")


@dataclasses.dataclass(frozen=True)
class VarNetConfig(ModelConfig):
    """Sizes of E2E-VarNet; the defaults are fastMRI's.

    Attributes:
      cascades: steps, each with its own U-Net and weight.
      features: channels of these U-Nets at full resolution, doubled by each pooling.
      poolings: how often they halve the resolution.
      sensitivity_features: the same of the U-Net that estimates sensitivity maps.
      sensitivity_poolings: the same.
      maps: where the maps of several coils come from: "learned", from a U-Net on each
        coil's image of the fully sampled centre (`calibration_region`), or "given", the
        batch's. With one coil there are no maps, and no network for them.
      remat: which activations training keeps for the gradient, which sets its memory;
        see `kst_jax.models.rematerialisation`.
    """

    takes_coils = True

    name: str = "varnet"
    cascades: int = 12
    features: int = 18
    poolings: int = 4
    sensitivity_features: int = 8
    sensitivity_poolings: int = 4
    maps: str = "learned"
    remat: str = "blocks"

    def __post_init__(self):
        """Raises InputError if no network can have these sizes."""
        super().__post_init__()
        require_positive(self)
        for name, choices in (("maps", MAPS), ("remat", REMATS)):
            holds = getattr(self, name) in choices
            require_option(self, name, holds, f"one of {', '.join(choices)}")

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if a U-Net would reduce images to single pixels."""
        poolings = max(self.poolings, self.sensitivity_poolings)
        if max(size) <= 2**poolings:
            raise InputError(
                f"data.size={size} is too small for {poolings} poolings: rows or "
                f"columns must be above {2**poolings}; use fewer model.poolings and "
                "model.sensitivity_poolings"
            )

    def require_phase(self) -> None:
        """Raises InputError for learned maps, whose phase is arbitrary."""
        require_option(
            self,
            "maps",
            self.maps == "given",
            "'given' for several coils if train.supervision='self': learned maps leave "
            "the phase of images free",
        )


class NormalisedUNet(nn.Module):
    """A U-Net whose input has mean 0 and standard deviation 1, for images of any size.

    Real and imaginary parts are normalised apart; the result gets their mean and
    standard deviation back.
    """

    features: int
    poolings: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """(B, H, W, 2) to (B, H, W, 2), float32."""
        mean = image.mean((1, 2), keepdims=True)
        variance = image.var((1, 2), keepdims=True, ddof=1)  # as PyTorch
        # The small constant keeps the gradient of a constant image finite.
        deviation = jnp.sqrt(variance + 1e-12)
        sizes, multiple = image.shape[1:3], 2**self.poolings
        missing = [-n % multiple for n in sizes]
        width = [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)]
        x = jnp.pad((image - mean) / deviation, width)
        x = unet.layers(x, self.features, self.poolings, self.dtype)
        top, left = (n // 2 for n in missing)
        x = x[:, top : top + sizes[0], left : left + sizes[1]]
        return x * deviation + mean


class Cascade(nn.Module):
    """One step: towards the measured values, and a U-Net's correction."""

    config: VarNetConfig

    @nn.compact
    def __call__(
        self, spectrum: jax.Array, kspace: jax.Array, acquisition: Acquisition
    ) -> tuple[jax.Array, None]:
        """A spectrum and measured k-space, (B, H, W, 2) or (B, C, H, W, 2)."""
        c = self.config
        weight = self.param("weight", nn.initializers.ones, ())
        network = NormalisedUNet(c.features, c.poolings, jnp.dtype(c.dtype))
        change = acquisition.spectrum(network(acquisition.image(spectrum)))
        misfit = acquisition.sampled(spectrum - kspace)
        return spectrum - weight * misfit - change, None


class Sensitivities(nn.Module):
    """Estimates sensitivity maps from the fully sampled centre of k-space."""

    config: VarNetConfig

    @nn.compact
    def __call__(self, kspace: jax.Array, mask: jax.Array) -> jax.Array:
        """K-space (B, C, H, W, 2) and mask (B, H, W) to maps (B, C, H, W, 2).

        At each pixel they have unit norm over the coils.
        """
        c = self.config
        centre = calibration_region(mask)[:, None, :, :, None]
        images = ifft2c(jnp.where(centre, kspace, 0))
        network = NormalisedUNet(
            c.sensitivity_features, c.sensitivity_poolings, jnp.dtype(c.dtype)
        )
        maps = network(images.reshape(-1, *images.shape[2:])).reshape(images.shape)
        # The small constant keeps the gradient finite where all are zero.
        return maps * jax.lax.rsqrt((maps**2).sum((1, 4), keepdims=True) + 1e-12)


def calibration_region(mask_BxHxW: jax.Array) -> jax.Array:
    """Marks the largest fully sampled rectangle about the middle of k-space.

    It reaches equally far to both sides of the boundaries before row H // 2 and before
    column W // 2; what is outside k-space counts as sampled. Under line sampling these
    are all rows, and twice as many columns as lie between the middle and the nearer
    gap. So does fastMRI, but it takes an odd number of columns one further to the
    right, sampled or not, and only a single one of a full mask.

    Args:
      mask_BxHxW: True where sampled.

    Returns:
      (B, H, W), bool. If not even the four points in the middle are sampled there is no
      such rectangle, and all points are marked: what was sampled must do.
    """
    return jax.vmap(_region)(mask_BxHxW)


def _region(mask_HxW: jax.Array) -> jax.Array:
    rows, columns = mask_HxW.shape
    row_H, column_W = _distance(rows), _distance(columns)
    height, width = -(-rows // 2), -(-columns // 2)  # of half of k-space
    # How far each row is sampled, then all rows up to each half-height R.
    width_H = jnp.where(mask_HxW, width, column_W[None]).min(1)
    height_R = jnp.arange(1, height + 1)
    inside_RxH = row_H[None] < height_R[:, None]
    width_R = jnp.where(inside_RxH, width_H[None], width).min(1)
    area_R = jnp.minimum(2 * height_R, rows) * jnp.minimum(2 * width_R, columns)
    best = area_R.argmax()
    inside_H, inside_W = row_H < height_R[best], column_W < width_R[best]
    return (inside_H[:, None] & inside_W[None]) | (width_R[best] == 0)


def _distance(size: int) -> jax.Array:
    """Whole points (size,) between each point and the boundary before the middle."""
    offset = jnp.arange(size) - size // 2
    return jnp.where(offset >= 0, offset, -1 - offset)


class VarNet(Reconstructor):
    """Reconstructs slices of several coils, or of one.

    The result is the combined image of the last spectrum, which is complex. fastMRI
    instead returns the root sum of squares of its coils' images; with one coil that is
    the image's magnitude. The phase of learned maps, and so the image's, is arbitrary:
    train with an error that compares magnitudes (`train.error="ssim"`).
    """

    config: VarNetConfig

    title = "E2E-VarNet"

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch; there is only one stage."""
        del stage
        c, acquisition = self.config, batch.cartesian
        if batch.maps is not None and c.maps == "learned":
            network = POLICIES[c.remat](Sensitivities)(c, name="sensitivities")
            maps = network(batch.kspace, acquisition.mask)
            acquisition = Acquisition(acquisition.mask, maps)
        cascades = nn.scan(
            POLICIES[c.remat](Cascade),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.cascades,
        )
        spectrum = cascades(c, name="cascades")(
            batch.kspace, batch.kspace, acquisition
        )[0]
        return finished(acquisition.image(spectrum))
