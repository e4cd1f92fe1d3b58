"""The interface of every reconstruction network: input, result and training stages.

The training loop, the evaluator, the benchmark and the figures work with every network
that follows it.
"""

from typing import Any, ClassVar, Self

import flax.struct
import jax
from flax import linen as nn

from kst_jax.tokens import Batch

# Training may add the parts of a network one by one. The K-Space Transformer has the
# low-resolution decoder, the high-resolution decoder in k-space and its refinement in
# the image domain. A network that is trained as a whole has only the last stage.
STAGES = ("LR", "K", "RM")


@flax.struct.dataclass
class Reconstruction:
    """The result of a network.

    Attributes:
      image: the reconstruction (B, H, W, 2), as far as the stage goes.
      supervised: name to images (S, B, h, w, 2), one per layer; the loss compares each
        with the target at its size. The K-Space Transformer has "lr", "kspace" and
        "refined", the others "image".
      upsampled: the enlarged low-resolution image (B, H, W, 2) that a high-resolution
        decoder starts from; None without such a decoder.
      deviation: standard deviation (B, H, W) of the image's magnitude, as the network
        expects it; None if it predicts none.
      members: the images (S, B, H, W, 2) of an ensemble's networks; None of a single
        network.
    """

    image: jax.Array
    supervised: dict[str, jax.Array]
    upsampled: jax.Array | None = None
    deviation: jax.Array | None = None
    members: jax.Array | None = None


class Reconstructor(nn.Module):
    """A network that reconstructs slices.

    Its `__call__(batch: Batch, stage: str = "RM") -> Reconstruction` computes as far as
    the training stage goes.

    Attributes:
      config: sizes and options.
      query_axis: axis of devices that share the work on each slice, for networks that
        can share it; other networks repeat it on each device. None outside
        `parallel.map_over_devices`.
      size: rows and columns of the images that the config is for. `reconstruct` scales
        the network for images of other sizes (`ModelConfig.resized`). None applies the
        config to any size.
    """

    config: Any
    query_axis: str | None = None
    size: tuple[int, int] | None = None

    title: ClassVar[str]

    @property
    def stages(self) -> tuple[str, ...]:
        """The training stages that this network has parts for, in order."""
        return STAGES[-1:]

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Like every module's `apply`, but accelerators do not round float32 products.

        By default they round the factors to fewer bits. bfloat16 factors are not
        affected.
        """
        with jax.default_matmul_precision("highest"):
            return super().apply(*args, **kwargs)

    @nn.nowrap
    def reconstruct(
        self, params: dict, batch: Batch, stage: str = "RM"
    ) -> Reconstruction:
        """Reconstructs a batch with these parameters."""
        model = self.at(batch.grid)
        found: Any = model.apply({"params": params}, batch, stage=stage)
        return found

    @nn.nowrap
    def at(self, grid: tuple[int, int]) -> Self:
        """Returns the network, which has the same parameters, for images of a size."""
        if self.size is None or self.size == grid:
            return self
        return self.clone(config=self.config.resized(self.size, grid), size=grid)

    def introduced_in(self, path: tuple) -> str:
        """Returns the stage that first uses a parameter, given its path in the tree."""
        del path
        return STAGES[-1]


def finished(image: jax.Array) -> Reconstruction:
    """Wraps an image (B, H, W, 2) as the result of a network without intermediates."""
    return Reconstruction(image, {"image": image[None]})
