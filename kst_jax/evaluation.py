"""Evaluation: every test slice reconstructed and scored, a volume at a time.

    OUT/metrics.json                 means, volumes and every slice
    OUT/reconstructions/<name>.h5    magnitudes in the input's units, as in fastMRI
    OUT/figures/*.png                the paper's Figs. 2 to 4 (3 and 4 as far as the
                                     network has the parts)

Slices are scored on two scales, which differ since normalisation subtracts a mean:
"normalised" is of magnitudes of the images that the network sees, which is what the
authors' code measures; "input" is of magnitudes in the input's units, which are the
images that a reader looks at. Zero-filled images start from the same normalised
k-space that the network gets.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kst_jax import agreement, checkpoints, files, metrics, parallel, reports, subjects
from kst_jax.config import Config, require_config
from kst_jax.data import pipeline, transforms
from kst_jax.data.sources import Source
from kst_jax.fourier import ifft2c, magnitude
from kst_jax.models.attention_maps import attention_on_grid
from kst_jax.models.contract import Reconstructor
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.registry import build
from kst_jax.stages import reached
from kst_jax.tokens import Batch


def make_reconstructor(model: Reconstructor, mesh: Mesh, stage: str = "RM") -> Callable:
    """Compiles reconstruction, as far as a training stage goes, and scores of a batch.

    Devices along the mesh's second axis share the queries of each slice.

    The function takes parameters, a Batch, and mean and std of its slices (B,). It
    returns a dictionary, every entry with a leading axis B:

      images: magnitudes (B, H, W) in the input's units by name: zero_filled,
        reconstruction, target.
      scores: by scale ("normalised", "input"), method and metric ("psnr", "ssim").
      mask: (B, H, W), True where sampled.
      stages: the last image (B, h, w, 2) of each stage, and the target, in the input's
        units.
    """
    model = model.clone(query_axis=parallel.QUERY)

    def function(params: dict, batch: Batch, mean: jax.Array, std: jax.Array) -> dict:
        output = model.reconstruct(params, batch, stage)
        images = {
            "zero_filled": ifft2c(batch.kspace),
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
        return {
            "images": {name: magnitude(x) for name, x in shown.items()},
            "scores": {"normalised": _scores(images), "input": _scores(shown)},
            "mask": batch.mask,
            "stages": stages,
        }

    return parallel.map_over_devices(
        function,
        mesh,
        in_specs=(parallel.REPLICATED, *[parallel.SHARDED] * 3),
        out_specs=parallel.SHARDED,
    )


def _scores(images: dict[str, jax.Array]) -> dict:
    magnitudes = {name: magnitude(image) for name, image in images.items()}
    target = magnitudes.pop("target")
    return {
        method: {
            "psnr": metrics.psnr(image, target),
            "ssim": metrics.ssim(image, target),
        }
        for method, image in magnitudes.items()
    }


def evaluate(config: Config, workdir: str | Path) -> dict | None:
    """Evaluates a run's latest or best checkpoint on the test scans.

    Args:
      config: test scans, undersampling and model; the model must be the checkpoint's.
      workdir: the run.

    Returns:
      What metrics.json holds; of several processes only the first one writes it and
      gets it.

    Raises:
      InputError: no such checkpoint, one that does not fit, scans that cannot be used,
        someone among them whom the model was trained or chosen on, or a folder with
        results of another evaluation, or that cannot be written to.
    """
    require_config(config)
    params, saved, step = checkpoints.read_parameters(workdir, config.eval.checkpoint)
    agreement.require_same_model(saved, config, workdir)
    sampler = pipeline.open_sampler(config)
    model = build(config.model)
    agreement.require_fit(
        params, model, pipeline.example_batch(config, sampler), workdir
    )
    out = Path(config.eval.out or Path(workdir) / "eval").absolute()
    files.make_folder(out)
    test = reports.identify(out, config, workdir)
    reports.require_same_test(out, test)
    source = pipeline.open_test_source(config)
    subjects.require_unseen(workdir, source.subjects)
    mesh = parallel.make_mesh(config.eval.batch_size, config.eval.query_devices)
    parallel.warn_of_idle_devices(mesh, "eval.batch_size", config.eval.batch_size)
    stage = reached(saved.train, step, model.stages)
    complete = stage == model.stages[-1]
    if not complete:
        print(f"Step {step} is of training stage {stage}: the network goes no further")
    reconstructor = make_reconstructor(model, mesh, stage)
    everywhere = parallel.replicate(params, mesh)
    slices = reconstruct(source, config, sampler, reconstructor, everywhere, mesh)
    if not parallel.is_first():
        for _ in slices:  # takes part, and leaves the report to the first
            pass
        return None
    with files.together(out, reports.FIGURES) as unfinished:
        report = reports.Report(
            unfinished, config, test, {"step": step, "stage": stage}, source
        )
        for number, found in slices:
            report.add(number, found)
        if isinstance(model, KSpaceTransformer) and complete and report.chosen:
            middle = report.chosen[len(report.chosen) // 2]
            batch = pipeline.test_slice(source, config, sampler, middle)
            report.add_attention(attention_on_grid(model, params, batch))
        found = report.finish()
    print(f"written to {out}")
    return found


def reconstruct(
    source: Source,
    config: Config,
    sampler: pipeline.Sampler,
    reconstructor: Callable,
    params: dict,
    mesh: Mesh,
    title: str = "Evaluating",
) -> Iterator[tuple[int, dict]]:
    """Each slice's number and what the reconstructor found, in the source's order."""
    # leave=None: below another bar it goes when it is done
    batches = pipeline.test_batches(
        source, config, sampler, jax.process_index(), jax.process_count()
    )
    with (
        tqdm(desc=title, unit="slice", total=len(source), leave=None) as bar,
        contextlib.closing(iter(batches)) as ready,
    ):
        for test in ready:
            *inputs, number = parallel.shard(tuple(test), mesh)
            found, number = parallel.fetch((reconstructor(params, *inputs), number))
            for place in np.flatnonzero(number >= 0):
                yield (
                    int(number[place]),
                    jax.tree.map(lambda x, place=place: x[place], found),
                )
                bar.update()
