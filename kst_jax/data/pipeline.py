"""Turns slices into batches of masked k-space tokens, with grain.

The seed and a slice's global number in the stream determine its place, augmentation and
mask in training. So the stream does not depend on how many processes share it, nor on
the threads and worker processes that prepare it. In evaluation the seed, the file and
the slice determine the mask.

They do so in training without targets too (`train.supervision`): a real scan is
measured once. There only flips and the split of what was measured are drawn anew.
"""

import contextlib
import copy
import functools
import itertools
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from kst_jax import sampling, tokens
from kst_jax.config import Config
from kst_jax.data import opening, preparing, sensitivities, splits, transforms
from kst_jax.data.native import Grid
from kst_jax.data.sources import Source
from kst_jax.data.splits import Splitter
from kst_jax.data_config import DataConfig
from kst_jax.patterns import Patterns
from kst_jax.programs import processes
from kst_jax.tokens import Batch

# What draws of a slice's own generators are for, besides `splits.SPLIT`; masks need
# no number.
_SIMULATION, _COIL_SET = 1, 2


class EvalBatch(NamedTuple):
    """A batch to evaluate.

    Attributes:
      batch: the slices.
      mean: (B,) values that normalisation subtracted, in the input's units.
      std: (B,) values that it divided by.
      reference: (B, h, w) magnitudes to compare with, in the input's units; None if
        they are those of the batch's images.
      number: (B,) the slices' numbers in the source; -1 for padding.
    """

    batch: Batch
    mean: np.ndarray
    std: np.ndarray
    reference: np.ndarray | None
    number: np.ndarray


def example_batch(config: Config, sampler: Patterns, count: int = 1) -> Batch:
    """Returns a batch of random slices, undersampled as the config says."""
    rng = np.random.default_rng(0)
    slices = [preparing.example(config, sampler, rng) for _ in range(count)]
    return tokens.batch_of(slices, patch=config.model.patch)


def training_batches(
    source: Source,
    config: Config,
    sampler: Patterns,
    process: int = 0,
    processes: int = 1,
    first_step: int = 0,
) -> grain.DatasetIterator[Batch]:
    """Returns an endless stream of batches that can start at any step at once.

    Args:
      source: training slices.
      config: batch size, augmentation and seed.
      sampler: masks.
      process: number of this process; each process gets its share of every global
        batch.
      processes: number of processes.
      first_step: completed steps; the stream starts with the batch of the next step.
    """
    groups = _by_grid(source, config)
    streams = []
    for place, (grid, numbers) in enumerate(groups.items()):
        draw = functools.partial(_draw, numbers=numbers, config=config)
        prepare = functools.partial(
            _training_batch,
            source=source,
            config=config,
            sampler=sampler.at(grid.shape),
            splitter=splits.splitter_of(config, sampler.at(grid.shape)),
            grid=grid,
            share=slice(process, None, processes),
        )
        stream = grain.MapDataset.range(len(numbers)).seed(_seed(config, place))
        stream = stream.shuffle().repeat().random_map(draw)
        # An endless stream has no remainder; its length would overflow.
        stream = stream.batch(
            config.train.batch_size, drop_remainder=True, batch_fn=list
        )
        streams.append(stream.map(prepare))
    weights = [len(numbers) for numbers in groups.values()]
    stream = grain.MapDataset.mix(streams, weights)[first_step:]
    return iter(_ahead(stream, config.data))


def _by_grid(source: Source, config: Config) -> dict[Grid, list[int]]:
    """Groups the numbers of slices that may share a batch."""
    groups: dict[Grid, list[int]] = {}
    for number in range(len(source)):
        groups.setdefault(preparing.grid_of(source, number, config), []).append(number)
    return dict(sorted(groups.items()))


def _seed(config: Config, place: int) -> int:
    """Returns the seed of a group's stream, which differs from the other groups'."""
    if place == 0:
        return config.data.seed
    sequence = np.random.SeedSequence((config.data.seed, place))
    return int(sequence.generate_state(1)[0])


def evaluation_batches(
    source: Source,
    config: Config,
    sampler: Patterns,
    process: int = 0,
    processes: int = 1,
    *,
    holds_out: bool = False,
) -> grain.IterDataset[EvalBatch]:
    """Returns each slice once, in order; pads the last batch with its last slice.

    Args:
      source: test slices.
      config: batch size and seed.
      sampler: masks.
      process: number of this process; its part of every global batch follows the part
        of the process before.
      processes: number of processes.
      holds_out: hold measured points out for comparison, as in training without
        targets; the same ones of a slice each time.
    """
    prepare = functools.partial(
        _evaluation_batch,
        source=source,
        config=config,
        sampler=sampler,
        share=(process, processes),
        holds_out=holds_out,
    )
    stream = grain.MapDataset.source(list(_in_order(source, config))).map(prepare)
    return _ahead(stream, config.data)


class _Row(NamedTuple):
    """Numbers of the slices in a global batch; the last is repeated as padding."""

    grid: Grid
    numbers: list[int]
    real: int


def _in_order(source: Source, config: Config) -> Iterator[_Row]:
    """Cuts the slices into batches of one grid each."""
    size = config.eval.batch_size
    of_number = functools.partial(preparing.grid_of, source, config=config)
    for grid, group in itertools.groupby(range(len(source)), of_number):
        run = list(group)
        for first in range(0, len(run), size):
            part = run[first : first + size]
            padding = [part[-1]] * (size - len(part))
            yield _Row(grid, part + padding, len(part))


def evaluation_slice(
    source: Source,
    config: Config,
    sampler: Patterns,
    number: int,
) -> Batch:
    """Returns the slice with this number in `evaluation_batches`, as a batch of one."""
    row = _Row(preparing.grid_of(source, number, config), [number], 1)
    return _evaluation_batch(
        row, source=source, config=config, sampler=sampler, share=(0, 1)
    ).batch


def pipeline_rate(config: Config, seconds: float) -> float:
    """Measures the slices per second of the training input, with the cores idle.

    Args:
      config: a run's config; names the scans to open.
      seconds: how long to measure, after the first batches.
    """
    source, _ = opening.open_sources(config)
    with tempfile.TemporaryDirectory() as folder:
        sets = config.data.coils.sets
        source = sensitivities.estimate(source, config, Path(folder), sets)
        return _rate(source, config, seconds)


def _rate(source: Source, config: Config, seconds: float) -> float:
    stream = training_batches(source, config, opening.sampler_of(source, config))
    with contextlib.closing(stream):
        for _ in range(
            2 * max(1, config.data.workers)
        ):  # until threads and workers run
            next(stream)
        begun, slices = time.perf_counter(), 0
        while time.perf_counter() < begun + seconds:
            slices += len(next(stream).mask)
        return slices / (time.perf_counter() - begun)


def _ahead(stream: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """Prepares batches ahead, in threads of this process or of worker processes."""
    if config.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # workers get grain's own flags, also in Colab
    read = grain.ReadOptions(config.threads, config.prefetch)
    workers = grain.MultiprocessingOptions(num_workers=config.workers)
    return stream.to_iter_dataset(read).mp_prefetch(workers, _follow_parent)


def _follow_parent(worker: int, count: int) -> None:
    """Makes a worker ignore signals that a terminal or `timeout` sends to all.

    The run's process handles them. It needs the worker until it has saved; the worker
    ends with it, even if it is killed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    processes.end_with_parent()


class _Drawn(NamedTuple):
    """A visit to a slice: what happens to it, and the generator of the rest."""

    number: int
    change: transforms.Change
    coil_set: int
    rng: np.random.Generator


def _draw(
    place: int, rng: np.random.Generator, *, numbers: list[int], config: Config
) -> _Drawn:
    change, coils = transforms.draw_change(config.data.augment, rng), config.data.coils
    coil_set = int(rng.integers(coils.sets)) if coils.count > 1 else 0
    # grain uses a generator again once a slice is drawn.
    return _Drawn(numbers[place], change, coil_set, copy.deepcopy(rng))


def _training_batch(
    drawn: list[_Drawn],
    *,
    source: Source,
    config: Config,
    sampler: Patterns,
    splitter: Splitter | None,
    grid: Grid,
    share: slice,
) -> Batch:
    """Prepares a process's share of a global batch."""
    # All processes must choose the same bucket, so they know each other's masks.
    known = drawn if len(sampler.buckets) > 1 else drawn[share]
    patterns = [_training_pattern(one, source, config, sampler) for one in known]
    patch = config.model.patch
    layout = sampler.layout(patch, patterns)
    if splitter:
        layout = splitter.layout(layout)
    prepare = functools.partial(
        _training_slice,
        source=source,
        config=config,
        splitter=splitter,
        grid=grid,
        layout=layout,
    )
    own = patterns[share] if known is drawn else patterns
    pairs = zip(drawn[share], own, strict=True)
    slices = [prepare(one, pattern) for one, pattern in pairs]
    return tokens.batch_of(slices, grid.field, patch)


def _training_pattern(
    one: _Drawn, source: Source, config: Config, sampler: Patterns
) -> Any:
    if not config.train.self_supervised:
        return sampler.random(one.rng)
    about = source.describe(one.number)
    return sampler.fixed(about.file, about.index, config.data.seed)


def _training_slice(
    one: _Drawn,
    pattern: Any,
    *,
    source: Source,
    config: Config,
    splitter: Splitter | None,
    grid: Grid,
    layout: Any,
) -> dict[str, np.ndarray]:
    """Prepares a slice: its scan is simulated anew, or the only one is split anew."""
    change: transforms.Change | None = one.change
    scan_rng, coil_set = one.rng, one.coil_set
    if splitter:
        about, seed = source.describe(one.number), config.data.seed
        own_rng = functools.partial(sampling.slice_rng, about.file, about.index, seed)
        change, scan_rng = None, own_rng(_SIMULATION)
        coil_set = int(own_rng(_COIL_SET).integers(config.data.coils.sets))
    view = preparing.view(one.number, source, config, grid, change)
    receiver = source.receiver(one.number, coil_set, grid.shape)
    scan, held_out = preparing.scan(view, config, scan_rng, receiver), None
    if splitter:
        split = splitter.split(one.rng, scan.sampled(pattern))
        # Flipped as measured: to flip the image first would measure other points of it.
        scan = scan.flipped(one.change)
        pattern, held_out = (transforms.flip_kspace(x, one.change) for x in split)
    where = _where(source, one.number)
    return preparing.tokenise(scan, pattern, layout, config, where, held_out)[0]


def _evaluation_batch(
    row: _Row,
    *,
    source: Source,
    config: Config,
    sampler: Patterns,
    share: tuple[int, int],
    holds_out: bool = False,
) -> EvalBatch:
    """Prepares a process's share (process, of how many) of a global batch."""
    sampler, seed = sampler.at(row.grid.shape), config.eval.seed
    splitter = splits.splitter_of(config, sampler) if holds_out else None
    size = len(row.numbers) // share[1]
    places = range(share[0] * size, (share[0] + 1) * size)
    own = [row.numbers[place] for place in places]
    # All processes must choose the same bucket, so they know each other's masks.
    patterns = {}
    for number in row.numbers if len(sampler.buckets) > 1 else own:
        about = source.describe(number)
        patterns[number] = sampler.fixed(about.file, about.index, seed)
    patch = config.model.patch
    layout = sampler.layout(patch, list(patterns.values()))
    if splitter:
        layout = splitter.layout(layout)
    views = [preparing.view(number, source, config, row.grid) for number in own]
    slices, scalings = [], []
    for number, view in zip(own, views, strict=True):
        about, where = source.describe(number), _where(source, number)
        own_rng = functools.partial(sampling.slice_rng, about.file, about.index, seed)
        receiver = source.receiver(number, 0, row.grid.shape)
        scan = preparing.scan(view, config, own_rng(_SIMULATION), receiver)
        pattern, held_out = patterns[number], None
        if splitter:
            rng = own_rng(splits.SPLIT)
            pattern, held_out = splitter.split(rng, scan.sampled(pattern))
        prepared = preparing.tokenise(scan, pattern, layout, config, where, held_out)
        slices.append(prepared[0])
        scalings.append(prepared[1])
    references = [view.reference for view in views if view.reference is not None]
    return EvalBatch(
        tokens.batch_of(slices, row.grid.field, patch),
        np.array([scaling.mean for scaling in scalings], np.float32),
        np.array([scaling.std for scaling in scalings], np.float32),
        np.stack(references) if references else None,
        np.array([row.numbers[n] if n < row.real else -1 for n in places]),
    )


def _where(source: Source, number: int) -> str:
    about = source.describe(number)
    return f"{about.file}, slice {about.index}"
