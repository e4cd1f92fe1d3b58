"""What every reconstruction network takes, returns and tells of its training.

One training loop, one evaluator, one benchmark and one figure maker serve all networks
that keep to it.
"""

from typing import Any, ClassVar

import flax.struct
import jax
from flax import linen as nn

from kst_jax.tokens import Batch

# Training may add one part of a network after the other. The K-Space Transformer's:
# the low-resolution decoder, the high-resolution decoder in k-space, its refinement in
# the image domain. A network that is trained as a whole has the last one alone.
STAGES = ("LR", "K", "RM")


@flax.struct.dataclass
class Reconstruction:
    """What a network returns.

    Attributes:
      image: the reconstruction (B, H, W, 2), so far as the stage goes.
      supervised: name to images (S, B, h, w, 2), one a layer, all of which the loss
        compares with the target at their size: "lr", "kspace" and "refined" of the
        K-Space Transformer, "image" of the others.
      upsampled: the enlarged low-resolution image (B, H, W, 2) that a high-resolution
        decoder starts from; None where there is none.
    """

    image: jax.Array
    supervised: dict[str, jax.Array]
    upsampled: jax.Array | None = None


class Reconstructor(nn.Module):
    """A network that reconstructs slices.

    Its `__call__(batch: Batch, stage: str = "RM") -> Reconstruction` goes as far as a
    training stage does.

    Attributes:
      config: its sizes and choices.
      query_axis: axis of devices that share the work on each slice, for networks that
        can; the others do all of it on each. None outside of
        `parallel.map_over_devices`.
    """

    config: Any
    query_axis: str | None = None

    title: ClassVar[str]

    @property
    def stages(self) -> tuple[str, ...]:
        """The training stages that this network has parts for, in their order."""
        return STAGES[-1:]

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """As every module's, with float32 products that accelerators do not round.

        By default they round the factors to fewer bits. bfloat16 factors are what they
        are.
        """
        with jax.default_matmul_precision("highest"):
            return super().apply(*args, **kwargs)

    @nn.nowrap
    def reconstruct(
        self, params: dict, batch: Batch, stage: str = "RM"
    ) -> Reconstruction:
        """What the network makes of a batch with these parameters."""
        found: Any = self.apply({"params": params}, batch, stage=stage)
        return found

    def introduced_in(self, path: tuple) -> str:
        """The stage that first uses a parameter, given its path in the tree."""
        del path
        return STAGES[-1]


def finished(image: jax.Array) -> Reconstruction:
    """What a network without intermediate images returns: (B, H, W, 2), supervised."""
    return Reconstruction(image, {"image": image[None]})
