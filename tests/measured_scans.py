"""Scans that the scanner undersampled, and a config that trains on them."""

import contextlib
import dataclasses

import jax
import numpy as np

from kst_jax.config import Config
from kst_jax.data import opening, pipeline
from kst_jax.data_config import DataConfig
from kst_jax.mask_config import MaskConfig
from kst_jax.models.d5c5 import D5C5Config
from tests import fastmri_files, mrd_files
from tests.test_self_supervision import changed

# The readout is oversampled twice; the scanner measured columns 2 to 21 of 24.
ROWS, WIDTH, COLUMNS = 16, 24, (2, 22)
MASKS = {
    "one": np.isin(np.arange(WIDTH), [0, 3, 6, 9, 11, 12, 13, 15, 18, 21, 23]),
    "two": np.isin(np.arange(WIDTH), [4, 8, 10, 11, 12, 13, 16, 20]),
}
CONFIG = Config(
    data=DataConfig(native=True, size=(ROWS, WIDTH)),
    mask=MaskConfig("measured"),
    model=D5C5Config(cascades=1, features=4),
    train=dataclasses.replace(
        Config().train, supervision="self", batch_size=1, stages=(0.0, 0.0, 1.0)
    ),
)


def padded(mask):
    """Without the columns that the scanner never measures."""
    inside = (np.arange(WIDTH) >= COLUMNS[0]) & (np.arange(WIDTH) < COLUMNS[1])
    return mask & inside


# Points of the scans' masks, the least and the most.
COUNTS = tuple(sorted(int(padded(mask).sum()) * ROWS for mask in MASKS.values()))


def write_fastmri(folder, slices=2):
    """Two scans, each with a mask of its own; returns the k-space by file."""
    rng, written = np.random.default_rng(0), {}
    for name, mask in MASKS.items():
        images = np.abs(rng.normal(size=(slices, ROWS, ROWS))) + np.hanning(ROWS)
        kspace = fastmri_files.measured(images, WIDTH, COLUMNS, seed=len(written))
        path = folder / f"{name}.h5"
        fastmri_files.write(path, kspace, (ROWS, ROWS), COLUMNS, mask, patient_id=name)
        written[path.name] = kspace * padded(mask)
    return written


def fastmri_scans(folder):
    """Writes scans; returns a config that trains on them, and their k-space by file."""
    folder.mkdir()
    kspace = write_fastmri(folder)
    return changed(CONFIG, data={"train": str(folder)}), kspace


def write_mrd(folder, coils=1, calibration=False):
    """A scan of two repetitions, which skip other lines each."""
    written = []
    _, kspace = mrd_files.scan(coils)
    for repetition, steps in enumerate(([0, 2, 4, 5, 6, 8], [1, 3, 4, 5, 6, 7, 9])):
        written += mrd_files.lines(kspace, steps, repetition=repetition)
    if calibration:
        steps = range(2, 8)
        written += mrd_files.lines(kspace, steps, [20])
    return mrd_files.write(folder / "scan.mrd", written)


def opened(config):
    source, _ = opening.open_sources(config)
    return source, opening.sampler_of(source, config)


def visits(source, config, sampler, count):
    stream = pipeline.training_batches(source, config, sampler)
    with contextlib.closing(stream):
        for _ in range(count):
            yield jax.tree.map(lambda x: np.asarray(x[0]), next(stream))
