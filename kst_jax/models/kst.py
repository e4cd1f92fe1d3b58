"""The K-Space Transformer: encoder, hierarchical decoder, refinement (paper Fig. 1)."""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kst_jax import parallel, patches, tokens
from kst_jax.acquisition import Acquisition
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c, ifft2c
from kst_jax.models import blocks
from kst_jax.models.config import KSTConfig
from kst_jax.models.contract import STAGES, Reconstruction, Reconstructor
from kst_jax.models.deviation import Deviation
from kst_jax.models.hybrid import HybridAttention
from kst_jax.models.rematerialisation import POLICIES
from kst_jax.models.upsampling import bicubic
from kst_jax.non_cartesian import DAMPING, NonCartesian
from kst_jax.tokens import Batch


class EncoderLayer(nn.Module):
    """Self-attention among sampled tokens, then MLP."""

    config: KSTConfig

    @nn.compact
    def __call__(
        self, x_BxNxD: jax.Array, valid_BxN: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """(B, N, D) to (B, N, D)."""
        x_BxNxD = _attend(self.config, "self_attention")(x_BxNxD, x_BxNxD, valid_BxN)
        return _mlp(self.config)(x_BxNxD), None


class LRDecoderLayer(nn.Module):
    """Cross-attention to the encoder, self-attention, MLP, and its own spectrum."""

    config: KSTConfig

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, memory_BxNxD: jax.Array, valid_BxN: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns hidden states (B, L, D) and the low-resolution image (B, h, w, 2)."""
        c = self.config
        x_BxLxD = _attend(c, "cross_attention")(x_BxLxD, memory_BxNxD, valid_BxN)
        x_BxLxD = _attend(c, "self_attention")(x_BxLxD, x_BxLxD)
        x_BxLxD = _mlp(c)(x_BxLxD)
        spectrum = patches.join(_head(c)(x_BxLxD), c.lr_size, c.patch)
        return x_BxLxD, ifft2c(spectrum)


@flax.struct.dataclass
class Grid:
    """The high-resolution grid as the decoder's layers need it; see `tokens`.

    `query` holds the queries that this device decodes, and `seen` which of their points
    are sampled, None if queries are points; the rest is complete. `kspace` is what data
    consistency needs of the samples.
    """

    query: jax.Array
    seen: jax.Array | None
    order: jax.Array
    kspace: jax.Array
    acquisition: Acquisition | NonCartesian


class HRDecoderLayer(nn.Module):
    """Cross-attention and MLP for the queries, then refinement in the image domain."""

    config: KSTConfig
    refine: bool
    query_axis: str | None

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array],
        memory_BxLxD: jax.Array | None,
        valid_BxL: jax.Array | None,
        grid: Grid,
        shared: dict[str, dict],
    ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
        """Updates the queries (B, M, D) and the spectrum (B, H, W, 2).

        `shared` maps a part's name to parameters that all layers use. Also returns this
        layer's images (B, H, W, 2).
        """
        c = self.config
        x_BxMxD, spectrum = carry
        embed = _embed(c, parent=None).bind(shared["embed_query"])

        def told(x_BxMxD: jax.Array, spectrum: jax.Array) -> jax.Array:
            value_BxMxV2 = tokens.at_queries(spectrum, grid.query, c.patch)
            return x_BxMxD + embed(_shown(c, value_BxMxV2, grid.seen))

        if c.hybrid:
            assert isinstance(grid.acquisition, Acquisition)
            spectrum += _hybrid(c)(spectrum, grid.kspace, grid.acquisition.mask)
            spectrum = grid.acquisition.completed(spectrum, grid.kspace)
            x_BxMxD = told(x_BxMxD, spectrum)
        if memory_BxLxD is not None:
            x_BxMxD = _attend(c, "cross_attention")(x_BxMxD, memory_BxLxD, valid_BxL)
        x_BxMxD = _mlp(c)(x_BxMxD)
        predicted = _head(c)(x_BxMxD)
        if c.residual_spectrum:
            value_BxMxV2 = tokens.at_queries(spectrum, grid.query, c.patch)
            predicted = value_BxMxV2 + c.residual_spectrum * predicted
        joined = parallel.join(predicted, self.query_axis)
        spectrum = tokens.fill(
            joined, grid.order, grid.kspace, grid.acquisition, c.patch
        )
        images = {"kspace": ifft2c(spectrum)}
        if self.refine:
            if c.shared_refinement:
                refinement = _refinement(c, parent=None).bind(shared["refinement"])
            else:
                refinement = _refinement(c, name="refinement")
            images["refined"], spectrum = refinement(
                images["kspace"], grid.kspace, grid.acquisition
            )
            x_BxMxD = told(x_BxMxD, spectrum)
        return (x_BxMxD, spectrum), images


class KSpaceTransformer(Reconstructor):
    """Reconstructs slices from their sampled tokens (paper Fig. 1 c).

    Several coils are not in the paper. A token then holds the values of all coils, and
    every point of the grid is a query for the spectrum of the combined image, which
    starts from that of the zero-filled image. Off the grid every point of it is a query
    too, and data consistency is soft, by a weight that is learned.

    Attributes:
      config: sizes and options.
      query_axis: axis of devices that share the queries of the high-resolution decoder,
        which are independent of each other; each device computes everything else. None
        outside `parallel.map_over_devices`.
    """

    config: KSTConfig

    title = "K-Space Transformer"

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the parts that this network has (paper Table 3)."""
        c = self.config
        has = {"LR": c.has_lr_decoder, "K": True, "RM": c.refinement}
        return tuple(stage for stage in STAGES if has[stage])

    def introduced_in(self, path: tuple) -> str:
        """Returns the stage that first uses a parameter, given its path in the tree."""
        names = [getattr(key, "key", key) for key in path]
        if names[0] == "deviation":
            return self.stages[-1]
        if "refinement" in names:
            return "RM"
        in_hr = ("hr_decoder", "embed_query", "log_damping")
        return "K" if names[0] in in_hr else "LR"

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch.

        Args:
          batch: tokens, and the grid to fill. The grid may be finer or coarser than the
            one that was sampled (`tokens.regrid`).
          stage: how far to go, one of STAGES; parts that the network lacks are skipped.
        """
        c = self.config
        if batch.patch != c.patch:
            raise ValueError(f"tokens are patches of {batch.patch}, not of {c.patch}")
        memory = self.encode(batch) if c.transformer else None
        valid, upsampled, supervised = batch.valid, None, {}
        first = batch.zero_filled_spectrum
        if memory is not None and c.has_lr_decoder:
            memory, supervised["lr"] = self.decode_lr(memory, valid)
            valid = None
            upsampled = bicubic(supervised["lr"][-1], batch.grid)
            if stage == "LR":
                return Reconstruction(upsampled, supervised, upsampled)
            if batch.maps is None and batch.trajectory is None:
                first = fft2c(upsampled)
        supervised |= self.decode_hr(batch, memory, valid, first, refine=stage == "RM")
        last = supervised.get("refined", supervised["kspace"])[-1]
        deviation = None
        if c.deviation and stage not in self.stages[:-1]:
            deviation = self.predict_deviation(batch, last, supervised)
        return Reconstruction(last, supervised, upsampled, deviation)

    @nn.nowrap
    def encode(self, batch: Batch) -> jax.Array:
        """Encodes the sampled tokens into memory (B, N, D) (paper section 2.2)."""
        c = self.config
        x_BxNxD = _embed(c, name="embed_token")(_shown(c, batch.value, batch.seen))
        x_BxNxD += blocks.positional_encoding(batch.position, c.width)
        return _layers(EncoderLayer, c.encoder_layers, c.remat)(c, name="encoder")(
            x_BxNxD, batch.valid
        )[0]

    @nn.nowrap
    def decode_lr(
        self, memory_BxNxD: jax.Array, valid_BxN: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns memory (B, L, D) and images (S, B, h, w, 2) at low resolution."""
        c = self.config
        position_Lx2 = jnp.asarray(patches.coordinates(c.lr_size, c.patch))
        x_LxD = blocks.positional_encoding(position_Lx2, c.width)
        # Taking the batch axis from the memory also marks the queries as different on
        # each device, which the loop over layers requires under shard_map.
        x_BxLxD = x_LxD[None] + jnp.zeros_like(memory_BxNxD[:, :1])
        return _layers(LRDecoderLayer, c.lr_layers, c.remat)(c, name="lr_decoder")(
            x_BxLxD, memory_BxNxD, valid_BxN
        )

    @nn.nowrap
    def decode_hr(
        self,
        batch: Batch,
        memory_BxLxD: jax.Array | None,
        valid_BxL: jax.Array | None,
        spectrum: jax.Array,
        *,
        refine: bool,
    ) -> dict[str, jax.Array]:
        """Returns images (S, B, H, W, 2) of the high-resolution decoder's layers.

        Queries start from `spectrum` (B, H, W, 2). Without memory each query is alone.
        """
        c = self.config
        position = jnp.asarray(patches.coordinates(batch.grid, c.patch))
        query_BxM = parallel.share(batch.query, self.query_axis, len(position) - 1)
        embed = _embed(c, name="embed_query")
        acquisition, seen = self.acquisition(batch), None
        kspace = acquisition.measured(batch.kspace)
        if c.patch != (1, 1):
            seen = tokens.at_queries(batch.known[..., None], query_BxM, c.patch)
        value_BxMxV2 = tokens.at_queries(spectrum, query_BxM, c.patch)
        x_BxMxD = embed(_shown(c, value_BxMxV2, seen))
        x_BxMxD += blocks.positional_encoding(position[query_BxM], c.width)
        order = tokens.query_order(batch)
        grid = Grid(query_BxM, seen, order, kspace, acquisition)
        shared = {"embed_query": embed.variables}
        if c.refinement and c.shared_refinement:
            refinement = _refinement(c, name="refinement")
            if self.is_initializing():
                refinement(spectrum, kspace, acquisition)
            shared["refinement"] = refinement.variables
        layers = _layers(HRDecoderLayer, c.hr_layers, c.remat)
        return layers(c, refine and c.refinement, self.query_axis, name="hr_decoder")(
            (x_BxMxD, spectrum), memory_BxLxD, valid_BxL, grid, shared
        )[1]

    @nn.nowrap
    def predict_deviation(
        self, batch: Batch, image_BxHxWx2: jax.Array, supervised: dict[str, jax.Array]
    ) -> jax.Array:
        """Predicts the standard deviation (B, H, W) of the image's magnitude."""
        layers = [
            supervised[name] for name in ("kspace", "refined") if name in supervised
        ]
        zero_filled = batch.acquisition.adjoint(batch.kspace)[None]
        others_SxBxHxWx2 = jnp.concatenate([zero_filled, *layers])
        return Deviation(name="deviation")(image_BxHxWx2, others_SxBxHxWx2)

    @nn.nowrap
    def acquisition(self, batch: Batch) -> Acquisition | NonCartesian:
        """Returns the forward model; off the grid with a learned damping."""
        acquisition = batch.acquisition
        if not isinstance(acquisition, NonCartesian):
            return acquisition
        start = nn.initializers.constant(math.log(DAMPING))
        return acquisition.damped(jnp.exp(self.param("log_damping", start, ())))


def _layers(layer: type[nn.Module], length: int, remat: str) -> type[nn.Module]:
    """A stack of layers as one loop, compiled once for any length."""
    return nn.scan(
        POLICIES[remat](layer),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
    )


def _dtype(c: KSTConfig) -> jnp.dtype:
    return jnp.dtype(c.dtype)


def _shown(c: KSTConfig, value: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Prepares spectrum values (..., 2 V) as the network sees them.

    With patches, it also sees which points are sampled, (..., V).
    """
    if c.log_magnitude:
        value = blocks.log_magnitude(value)
    if seen is None:
        return value
    return jnp.concatenate([value, seen.astype(value.dtype)], axis=-1)


def _attend(c: KSTConfig, name: str) -> blocks.AttentionBlock:
    return blocks.AttentionBlock(c.heads, _dtype(c), c.attention, name=name)


def _hybrid(c: KSTConfig) -> HybridAttention:
    return HybridAttention(
        c.patch, c.width, c.heads, c.mlp, _dtype(c), c.attention, name="hybrid"
    )


def _mlp(c: KSTConfig) -> blocks.MLPBlock:
    return blocks.MLPBlock(c.mlp, _dtype(c), name="mlp")


def _head(c: KSTConfig) -> blocks.SpectrumHead:
    return blocks.SpectrumHead(math.prod(c.patch), _dtype(c), name="head")


def _embed(c: KSTConfig, **kwargs: Any) -> blocks.Perceptron:
    """Makes an embedding of values; all layers share the queries' embedding."""
    return blocks.Perceptron(c.width, c.width, _dtype(c), **kwargs)


def _refinement(c: KSTConfig, **kwargs: Any) -> blocks.Refinement:
    """Makes a refinement, for one layer or shared by all."""
    return blocks.Refinement(
        c.refinement_features,
        c.refinement_layers,
        c.refinement_kernel,
        _dtype(c),
        **kwargs,
    )


def reconstruct_slice(
    model: KSpaceTransformer,
    params: dict,
    kspace: np.ndarray,
    mask: np.ndarray,
    grid: tuple[int, ...] | None = None,
) -> Reconstruction:
    """Reconstructs one slice, on any grid of coordinates (paper section 2.3).

    Args:
      model: the network.
      params: its parameters.
      kspace: normalised k-space (H, W, 2); unsampled values are ignored.
      mask: (H, W), True where sampled.
      grid: rows and columns to reconstruct; by default those of the k-space.

    Returns:
      Images with a batch axis of 1.

    Raises:
      InputError: `tokens.tokenise` refuses the k-space or mask, or the mask is full.
    """
    grid = grid or mask.shape
    # A finer grid has more queries, not more low-resolution tokens.
    model = model.at(mask.shape).clone(size=None)
    patch = model.config.patch
    batch = tokens.batch_of([tokens.regrid(kspace, mask, grid, patch)], patch=patch)
    if not batch.query.size:
        raise InputError("the mask samples every point; nothing left to reconstruct")
    return _apply(model, params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: KSpaceTransformer, params: dict, batch: Batch) -> Reconstruction:
    return model.reconstruct(params, batch)
