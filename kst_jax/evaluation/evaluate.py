"""Evaluation: reconstructs and scores every test slice, one volume at a time.

    OUT/metrics.json                 means, volumes and every slice
    OUT/reconstructions/<name>.h5    magnitudes in the input's units, as in fastMRI
    OUT/maps/                        sensitivity maps, with several coils
    OUT/figures/*.png                the paper's Figs. 2 to 4 (3 and 4 as far as the
                                     network has these parts), coils' maps, deviations

Slices are scored on two scales. "normalised" compares magnitudes of the images that the
network sees, like the authors' code. "input" compares magnitudes in the input's units,
the images that a reader looks at; there, zero-filled images are of the measured k-space
alone. The two differ if normalisation subtracts a mean (data.normalise="target").
"""

import contextlib
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from kst_jax import parallel
from kst_jax.config import Config, require_config
from kst_jax.data import opening, pipeline, sensitivities
from kst_jax.evaluation import identity, reports
from kst_jax.evaluation.scoring import make_scorer, score_slices
from kst_jax.evaluation.uncertainty import Uncertainty
from kst_jax.models.attention_maps import attention_on_grid
from kst_jax.models.contract import Reconstructor
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.registry import build
from kst_jax.patterns import Patterns
from kst_jax.programs import files
from kst_jax.runs import agreement, calibration, ensembles, subjects
from kst_jax.runs.calibration import Calibration
from kst_jax.runs.ensembles import Network
from kst_jax.stages import reached
from kst_jax.tokens import Batch


def evaluate(
    config: Config, workdir: str | Path, maps: Path | None = None
) -> dict | None:
    """Evaluates a run's latest or best checkpoint on the test scans.

    Args:
      config: test scans, undersampling and model; the model and
        `data.normalise` must be the checkpoint's.
      workdir: the run.
      maps: folder that keeps the coils' sensitivity maps; by default `maps` in the
        results.

    Returns:
      The contents of metrics.json; with several processes only the first one writes and
      returns it.

    Raises:
      InputError: the checkpoint does not exist or does not fit; the scans are unusable
        or include people that the model was trained or selected on; or the folder holds
        results of another evaluation, cannot be written to or is in use by another
        process.
    """
    require_config(config)
    networks = _networks(config, workdir)
    calibrated = _calibration(config, networks)
    sampler = opening.open_sampler(config)
    model = build(config.model, config.data.size)
    example = pipeline.example_batch(config, sampler)
    for one in networks:
        agreement.require_fit(one.params, model, example, one.run)
    out = files.local_folder(config.eval.out or Path(workdir) / "eval")
    files.make_folder(out)
    # Results that come in between would not be looked at before they are replaced.
    alone = files.alone_in(out) if parallel.is_first() else contextlib.nullcontext()
    with alone:
        test = identity.identify(out, config, workdir)
        identity.require_same_test(out, test)
        return _evaluate(config, model, networks, calibrated, sampler, test, out, maps)


def _evaluate(
    config: Config,
    model: Reconstructor,
    networks: list[Network],
    calibrated: Calibration | None,
    sampler: Patterns,
    test: dict[str, Any],
    out: Path,
    maps: Path | None,
) -> dict | None:
    """Evaluates networks into a folder that no other process writes to."""
    source = opening.open_test_source(config)
    identity.require_same_volumes(out, source)
    for one in networks:
        subjects.require_unseen(one.run, source.subjects, source.unlabelled_folders)
    if calibrated:
        calibrated.require_others(source.subjects, source.unlabelled_folders)
    source = sensitivities.estimate(source, config, maps or out / "maps")
    mesh = parallel.make_mesh(config.eval.batch_size, config.eval.query_devices)
    parallel.warn_of_idle_devices(mesh, "eval.batch_size", config.eval.batch_size)
    first = networks[0]
    stage = _stage(first, model)
    complete = stage == model.stages[-1]
    scale = calibrated.scale if calibrated else 1.0
    uncertainty = Uncertainty(scale) if complete and config.has_deviations else None
    scorer = make_scorer(model, mesh, stage, scale)
    everywhere = parallel.replicate(tuple(one.params for one in networks), mesh)
    slices = score_slices(source, config, sampler, scorer, everywhere, mesh)
    if not parallel.is_first():
        for _ in slices:  # only takes part; the first process reports
            pass
        return None
    with files.together(out, reports.earlier(out)) as unfinished:
        report = reports.Report(
            out=unfinished,
            config=config,
            test=test,
            reached={
                "step": first.step,
                "stage": stage,
                "networks": [_described(one, out) for one in networks],
            },
            source=source,
            sampler=sampler,
            uncertainty=uncertainty,
        )
        for number, found in slices:
            report.add(number, found)
        if report.chosen:
            middle = report.chosen[len(report.chosen) // 2]
            batch = pipeline.evaluation_slice(source, config, sampler, middle)
            if complete and _attends(model, batch):
                network = model.at(batch.grid)
                report.add_attention(attention_on_grid(network, first.params, batch))
            if batch.maps is not None:
                report.add_coils(np.asarray(batch.maps[0]))
        found = report.finish()
    print(f"written to {out}")
    return found


def _networks(config: Config, workdir: str | Path) -> list[Network]:
    """Reads the run and the further members of its ensemble."""
    which = config.eval.checkpoint
    first = ensembles.read(workdir, which)
    agreement.require_same_model(first.config, config, workdir)
    agreement.require_same_scale(first.config, config, workdir)
    # A network may be tested at another size than its own.
    shapes = ("size", "native", "resize")
    agreement.note_changes(first.config.data, config.data, shapes, workdir)
    return ensembles.with_members(first, config.eval.further_runs, which)


def _calibration(config: Config, networks: list[Network]) -> Calibration | None:
    """Reads the calibration of these networks, if the config names one."""
    if not config.eval.calibration:
        return None
    found = calibration.read(config.eval.calibration)
    found.require_networks(networks)
    found.require_mask(config.mask)
    return found


def _stage(network: Network, model: Reconstructor) -> str:
    """Returns the stage that a network was trained in, and tells of unfinished ones."""
    stage = reached(network.config.train, network.step, model.stages)
    if stage != model.stages[-1]:
        print(
            f"Step {network.step} is from training stage {stage}, so the network stops "
            "there"
        )
    return stage


def _described(network: Network, out: Path) -> dict[str, Any]:
    """Describes a network in the results in `out`."""
    return {
        "run": identity.relative(network.run, out),
        "step": network.step,
        "parameters": network.fingerprint,
    }


def _attends(model: Reconstructor, batch: Batch) -> TypeGuard[KSpaceTransformer]:
    """Whether queries of a batch attend to tokens that have a place on the grid."""
    return (
        isinstance(model, KSpaceTransformer)
        and model.config.transformer
        and batch.trajectory is None
        and bool(batch.asked.any())
    )
