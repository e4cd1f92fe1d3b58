"""Slices to batches of masked k-space tokens, with grain.

Order, augmentation and mask of a training slice are functions of the seed and of its
global number in the stream, so the stream does not depend on how many processes share
it, nor on the threads and worker processes that prepare it. In evaluation the mask is a
function of the seed, the file and the slice.
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
from kst_jax.config import Config, DataConfig
from kst_jax.data import sources, transforms
from kst_jax.data.readers.npy import read_mask_bank
from kst_jax.data.sources import Slice, Source
from kst_jax.errors import InputError
from kst_jax.programs import processes
from kst_jax.sampling import Sampler
from kst_jax.tokens import Batch


class EvalBatch(NamedTuple):
    """A batch to evaluate.

    Attributes:
      batch: the slices.
      mean: (B,) what normalisation took off, in the input's units.
      std: (B,) what it divided by.
      number: (B,) the slices' numbers in the source; -1 for padding.
    """

    batch: Batch
    mean: np.ndarray
    std: np.ndarray
    number: np.ndarray


def open_sources(config: Config) -> tuple[Source, Source]:
    """Training and test scans, which never share a person.

    Raises:
      InputError: scans that cannot be used, or the same person in both.
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
    """Scans left to train on, and those that training is watched on, if it is.

    Args:
      config: `train.validate_every` asks for validation, `data.validation` names its
        scans; where it is empty, people are taken from `train`.
      train: training scans.
      test: test scans.

    Raises:
      InputError: scans that cannot be used, nobody to take, or someone twice.
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
            f"config.train.validate_every needs people to validate on, but there is "
            f"only {train.subjects[0]} to train on; name scans of others with "
            "--config.data.validation, or set --config.train.validate_every=0"
        )
    kept, apart = sources.split_subjects(
        train.subjects, 1 - data.validation_fraction, data.split_seed
    )
    return train.select(kept), train.select(apart)


def open_test_source(config: Config) -> Source:
    """Test scans alone; the training scans need not be at hand if `test` is given."""
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
    """The undersampling of a run, with its bank of masks where it has one.

    Raises:
      InputError: a setting that cannot be, or an unreadable bank.
    """
    bank = None
    if config.mask.kind == "bank":
        if not config.mask.bank:
            raise InputError("config.mask.kind='bank' needs config.mask.bank, a .npy")
        bank = read_mask_bank(config.mask.bank)
    return sampling.sampler(config.mask, config.data.size, bank)


def example_batch(config: Config, sampler: Sampler) -> Batch:
    """A batch of one empty slice, with the shapes that every batch has."""
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
    """An endless stream of batches, from any step on at once.

    Args:
      source: training slices.
      config: batch size, augmentation and seed.
      sampler: masks.
      process: number of this process among `processes`, each of which gets its share
        of every global batch.
      processes: their count.
      first_step: steps that are over; the stream begins with the batch of the next.
    """
    prepare = functools.partial(_training_slice, config=config, sampler=sampler)
    stream = grain.MapDataset.source(source).seed(config.data.seed).shuffle()
    first = first_step * config.train.batch_size + process
    stream = stream.repeat().random_map(prepare)[first::processes]
    stream = stream.batch(
        config.train.batch_size // processes,
        drop_remainder=True,  # none in an endless stream, whose length would overflow
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
    """Each slice once, in order; the last batch is padded with its last slice.

    Args:
      source: test slices.
      config: batch size and seed.
      sampler: masks.
      process: number of this process among `processes`, each of which gets the part of
        every global batch that follows that of the process before.
      processes: their count.
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
    """One slice of those that `evaluation_batches` gives, by its number."""
    slice_tokens, *_ = _evaluation_slice(
        number, source=source, config=config, sampler=sampler
    )
    return tokens.batch_of([slice_tokens])


def pipeline_rate(config: Config, seconds: float) -> float:
    """Slices a second that the training's input delivers where nothing takes the cores.

    Args:
      config: a run; its scans are opened.
      seconds: how long to measure, after the first batches.
    """
    source, _ = open_sources(config)
    stream = training_batches(source, config, open_sampler(config))
    with contextlib.closing(stream):
        for _ in range(2 * max(1, config.data.workers)):  # threads and workers start
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
    """Leaves signals, which a terminal or `timeout` sends to all, to the run's process.

    The worker is needed until that has saved, and ends with it, even if it is killed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    processes.end_with_parent()


def _training_slice(
    item: Slice, rng: np.random.Generator, *, config: Config, sampler: Sampler
) -> dict[str, np.ndarray]:
    # Before the crop, so that what turns in from outside it is real.
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
    """The field of view of a slice, at the size of the config."""
    data = config.data
    image = transforms.field_of_view(image, data, _where(item))
    return transforms.fourier_resize(image, data.size, data.resize)


def _with_phase_and_noise(
    image: np.ndarray, item: Slice, config: Config, rng: np.random.Generator
) -> np.ndarray:
    """The image of a simulated scan; one that has a phase already is left alone."""
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
