"""Reconstructs and scores many slices, one batch at a time, on all devices."""

import contextlib
from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kst_jax import metrics, parallel
from kst_jax.config import Config
from kst_jax.data import pipeline, transforms
from kst_jax.data.sources import Source
from kst_jax.fourier import magnitude
from kst_jax.models import ensemble
from kst_jax.models.contract import Reconstructor
from kst_jax.patterns import Patterns
from kst_jax.tokens import Batch


def make_scorer(
    model: Reconstructor, mesh: Mesh, stage: str = "RM", scale: float = 1.0
) -> Callable:
    """Compiles a function that reconstructs a batch, up to a stage, and scores it.

    Devices along the mesh's second axis share the queries of each slice.

    The function takes the parameters of one or more networks, an ensemble, a Batch,
    mean and std of its slices (B,), and the magnitudes (B, h, w) that replace the
    target's in the input's units, or None. It returns a dictionary whose entries all
    have a leading axis B:

      images: magnitudes (B, h, w) of the field that counts, in the input's units, by
        name: zero_filled, reconstruction, target; and deviation, the standard deviation
        of the reconstruction times `scale`, if it is predicted or there is an ensemble.
      scores: by scale ("normalised", "input"), method and metric ("psnr", "ssim").
      mask: (B, H, W), True where sampled; off the grid the points of the `trajectory`
        (B, N, 2) instead.
      stages: the last image of each stage at its own size (B, ..., 2), and the target,
        in the input's units.
    """
    model = model.clone(query_axis=parallel.QUERY)

    def function(
        members: tuple[dict, ...],
        batch: Batch,
        mean: jax.Array,
        std: jax.Array,
        reference: jax.Array | None,
    ) -> dict:
        output = ensemble.reconstruct(model, members, batch, stage)
        images = {
            "zero_filled": batch.acquisition.adjoint(batch.kspace),
            "reconstruction": output.image,
            "target": batch.target,
        }
        stages: dict[str, jax.Array] = {
            name: layers[-1] for name, layers in output.supervised.items()
        }
        if output.upsampled is not None:
            stages["upsampled"] = output.upsampled
        stages["target"] = batch.target
        shown, stages = (
            {name: transforms.denormalise(x, mean, std) for name, x in group.items()}
            for group in (images, stages)
        )
        # A mean that normalisation took off was measured with the centre of k-space
        # alone: zero-filling must not know it otherwise.
        seen = jnp.where(_centre(batch.mask), mean, 0)
        shown["zero_filled"] = transforms.denormalise(images["zero_filled"], seen, std)
        images, shown = (
            {name: magnitude(batch.in_field(x)) for name, x in group.items()}
            for group in (images, shown)
        )
        if reference is not None:
            shown["target"] = reference
        scores = {"normalised": _scores(images), "input": _scores(shown)}
        if output.deviation is not None:
            deviation = batch.in_field(output.deviation[..., None])[..., 0]
            shown["deviation"] = scale * deviation * std[:, None, None]
        sampled = {"mask": batch.mask}
        if batch.trajectory is not None:
            sampled = {"trajectory": batch.trajectory}
        return {
            "images": shown,
            "scores": scores,
            **sampled,
            "stages": stages,
        }

    return parallel.map_over_devices(
        function,
        mesh,
        in_specs=(parallel.REPLICATED, *[parallel.SHARDED] * 4),
        out_specs=parallel.SHARDED,
    )


def _centre(mask_BxHxW: jax.Array) -> jax.Array:
    """Whether the centre of k-space is sampled, (B,)."""
    rows, columns = mask_BxHxW.shape[1:]
    return mask_BxHxW[:, rows // 2, columns // 2]


def _scores(images: dict[str, jax.Array]) -> dict:
    return {
        method: {
            "psnr": metrics.psnr(image, images["target"]),
            "ssim": metrics.ssim(image, images["target"]),
        }
        for method, image in images.items()
        if method != "target"
    }


def score_slices(
    source: Source,
    config: Config,
    sampler: Patterns,
    scorer: Callable,
    members: tuple[dict, ...],
    mesh: Mesh,
    title: str = "Evaluating",
    *,
    holds_out: bool = False,
) -> Generator[tuple[int, dict]]:
    """Yields each slice's number and the scorer's result, in the source's order.

    With `holds_out`, the network does not see some of what was measured; see
    `pipeline.evaluation_batches`.
    """
    # leave=None: a bar below another one disappears when it is done
    batches = pipeline.evaluation_batches(
        source,
        config,
        sampler,
        jax.process_index(),
        jax.process_count(),
        holds_out=holds_out,
    )
    with (
        tqdm(desc=title, unit="slice", total=len(source), leave=None) as bar,
        contextlib.closing(iter(batches)) as ready,
    ):
        for test in ready:
            *inputs, number = parallel.shard(tuple(test), mesh)
            found, number = parallel.fetch((scorer(members, *inputs), number))
            for place in np.flatnonzero(number >= 0):
                yield (
                    int(number[place]),
                    jax.tree.map(lambda x, place=place: x[place], found),
                )
                bar.update()
