"""Turns slices into batches of masked k-space tokens, with grain.

The seed and a slice's global number in the stream determine its place, augmentation and
mask in training. So the stream does not depend on how many processes share it, nor on
the threads and worker processes that prepare it. In evaluation the seed, the file and
the slice determine the mask.
"""

import contextlib
import functools
import signal
import time
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from kst_jax import sampling, tokens
from kst_jax.config import Config
from kst_jax.data import sources, transforms
from kst_jax.data.readers.npy import read_mask_bank
from kst_jax.data.sources import Slice, Source
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.programs import processes
from kst_jax.sampling import Sampler
from kst_jax.tokens import Batch


class EvalBatch(NamedTuple):
    """A batch to evaluate.

    Attributes:
      batch: the slices.
      mean: (B,) values that normalisation subtracted, in the input's units.
      std: (B,) values that it divided by.
      number: (B,) the slices' numbers in the source; -1 for padding.
    """

    batch: Batch
    mean: np.ndarray
    std: np.ndarray
    number: np.ndarray


def open_sources(config: Config) -> tuple[Source, Source]:
    """Opens the training and test scans, which never share a person.

    Raises:
      InputError: scans cannot be used, or both contain the same person.
    """
    data = config.data
    if not data.test:
        everyone = _open(data, data.train, data.draw_seed)
        kept, apart = sources.split_subjects(
            everyone.subjects, 1 - data.test_fraction, data.split_seed
        )
        return everyone.select(kept), everyone.select(apart)
    train = _open(data, data.train, data.draw_seed)
    test = _open(data, data.test, config.eval.seed)
    sources.require_disjoint(train, test)
    return train, test


def set_validation_apart(
    config: Config, train: Source, test: Source
) -> tuple[Source, Source | None]:
    """Returns the scans to train on, and those to validate on if the run validates.

    Args:
      config: `train.validate_every` asks for validation; `data.validation` names its
        scans. If it is empty, people are taken from `train`.
      train: training scans.
      test: test scans.

    Raises:
      InputError: scans cannot be used, `train` has nobody to spare, or the validation
        scans share a person with others.
    """
    data = config.data
    if not config.train.validate_every:
        return train, None
    if data.validation:
        validation = _open(data, data.validation, data.draw_seed)
        sources.require_disjoint(train, validation, "validation")
        sources.require_disjoint(test, validation, "validation", "test")
        return train, validation
    if len(train.subjects) < 2:
        raise InputError(
            f"config.train.validate_every needs people to validate on, but the "
            f"training scans have only {train.subjects[0]}; name scans of others with "
            "--config.data.validation, or set --config.train.validate_every=0"
        )
    kept, apart = sources.split_subjects(
        train.subjects, 1 - data.validation_fraction, data.split_seed
    )
    return train.select(kept), train.select(apart)


def open_test_source(config: Config) -> Source:
    """Opens the test scans alone; reads training scans only if `test` is empty."""
    if not config.data.test:
        return open_sources(config)[1]
    return _open(config.data, config.data.test, config.eval.seed)


def _open(config: DataConfig, paths: str, seed: int) -> Source:
    if not paths:
        raise InputError(
            "config.data.train is empty; name a folder or file of scans, such as "
            "--config.data.train=/data/train, or the bundled demo:train"
        )
    return sources.open_source(paths, config.selection(seed))


def open_sampler(config: Config) -> Sampler:
    """Returns the undersampling of a run, with its bank of masks if it has one.

    Raises:
      InputError: settings that no mask can meet, or an unreadable bank.
    """
    bank = None
    if config.mask.kind == "bank":
        if not config.mask.bank:
            raise InputError("config.mask.kind='bank' needs config.mask.bank, a .npy")
        bank = read_mask_bank(config.mask.bank)
    return sampling.sampler(config.mask, config.data.size, bank)


def example_batch(config: Config, sampler: Sampler) -> Batch:
    """Returns a batch of one empty slice; other dimensions are those of any batch."""
    mask = np.zeros(config.data.size, bool)
    mask.flat[: sampler.counts[1]] = True
    image = np.zeros((*config.data.size, 2), np.float32)
    slice_tokens = tokens.tokenise(image, mask, sampler.counts)
    return tokens.batch_of([slice_tokens | {"image": image}])


def training_batches(
    source: Source,
    config: Config,
    sampler: Sampler,
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
    prepare = functools.partial(_training_slice, config=config, sampler=sampler)
    stream = grain.MapDataset.source(source).seed(config.data.seed).shuffle()
    first = first_step * config.train.batch_size + process
    stream = stream.repeat().random_map(prepare)[first::processes]
    stream = stream.batch(
        config.train.batch_size // processes,
        drop_remainder=True,  # an endless stream has none; its length would overflow
        batch_fn=tokens.batch_of,
    )
    return iter(_ahead(stream, config.data))


def evaluation_batches(
    source: Source,
    config: Config,
    sampler: Sampler,
    process: int = 0,
    processes: int = 1,
) -> grain.IterDataset[EvalBatch]:
    """Returns each slice once, in order; pads the last batch with its last slice.

    Args:
      source: test slices.
      config: batch size and seed.
      sampler: masks.
      process: number of this process; its part of every global batch follows the part
        of the process before.
      processes: number of processes.
    """
    size = config.eval.batch_size
    batches = -(-len(source) // size)
    numbers = np.arange(batches * size).reshape(batches, processes, -1)[:, process]
    prepare = functools.partial(
        _evaluation_slice, source=source, config=config, sampler=sampler
    )
    stream = grain.MapDataset.source(numbers.ravel()).map(prepare)
    stream = stream.batch(size // processes, batch_fn=_eval_batch)
    return _ahead(stream, config.data)


def evaluation_slice(
    source: Source,
    config: Config,
    sampler: Sampler,
    number: int,
) -> Batch:
    """Returns the slice with this number in `evaluation_batches`, as a batch of one."""
    slice_tokens, *_ = _evaluation_slice(
        number, source=source, config=config, sampler=sampler
    )
    return tokens.batch_of([slice_tokens])


def pipeline_rate(config: Config, seconds: float) -> float:
    """Measures the slices per second of the training input, with the cores idle.

    Args:
      config: a run's config; names the scans to open.
      seconds: how long to measure, after the first batches.
    """
    source, _ = open_sources(config)
    stream = training_batches(source, config, open_sampler(config))
    with contextlib.closing(stream):
        for _ in range(
            2 * max(1, config.data.workers)
        ):  # until threads and workers run
            next(stream)
        begun, slices = time.perf_counter(), 0
        while time.perf_counter() < begun + seconds:
            slices += len(next(stream).image)
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


def _training_slice(
    item: Slice, rng: np.random.Generator, *, config: Config, sampler: Sampler
) -> dict[str, np.ndarray]:
    # Before the crop, so that a rotation brings in real values from outside it.
    image = transforms.augment(item.image, config.data.augment, rng)
    image = _image(image, item, config)
    mask = sampler.random(rng)
    image = _with_phase_and_noise(image, item, config, rng)
    return _tokens(image, mask, item, config, sampler)[0]


def _evaluation_slice(
    number: int, *, source: Source, config: Config, sampler: Sampler
) -> tuple[dict[str, np.ndarray], transforms.Normalisation, int]:
    item = source[min(number, len(source) - 1)]
    image = _image(item.image, item, config)
    rng = sampling.slice_rng(item.file, item.index, config.eval.seed, 1)
    image = _with_phase_and_noise(image, item, config, rng)
    mask = sampler.fixed(item.file, item.index, config.eval.seed)
    slice_tokens, normalisation = _tokens(image, mask, item, config, sampler)
    return slice_tokens, normalisation, number if number < len(source) else -1


def _image(image: np.ndarray, item: Slice, config: Config) -> np.ndarray:
    """Cuts the field of view of a slice and resizes it to the config's size."""
    data = config.data
    image = transforms.field_of_view(image, data, _where(item))
    return transforms.fourier_resize(image, data.size, data.resize)


def _with_phase_and_noise(
    image: np.ndarray, item: Slice, config: Config, rng: np.random.Generator
) -> np.ndarray:
    """Simulates a scan; leaves an image that already has a phase alone."""
    if item.image.imag.any():
        return image
    return transforms.simulate_scan(image, config.data.augment, rng)


def _tokens(
    image: np.ndarray, mask: np.ndarray, item: Slice, config: Config, sampler: Sampler
) -> tuple[dict[str, np.ndarray], transforms.Normalisation]:
    channels, kspace, normalisation = transforms.normalise(
        image, mask, config.data.normalise, _where(item)
    )
    slice_tokens = tokens.tokenise(kspace, mask, sampler.counts)
    return slice_tokens | {"image": channels}, normalisation


def _eval_batch(slices: list) -> EvalBatch:
    parts, normalisations, numbers = zip(*slices, strict=True)
    return EvalBatch(
        tokens.batch_of(parts),
        np.array([n.mean for n in normalisations], np.float32),
        np.array([n.std for n in normalisations], np.float32),
        np.array(numbers),
    )


def _where(item: Slice) -> str:
    return f"{item.file}, slice {item.index}"
