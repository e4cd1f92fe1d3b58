"""Estimates the coils' sensitivity maps of whole scans, once, into files beside a run.

Maps follow from the fully sampled centre of k-space, as from a calibration scan apart
from the samples that networks see; those of a scan undersampled at the scanner, from
what it measured. A scan of one coil gets simulated coils, a scan of
several is compressed to virtual ones.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from kst_jax import coils
from kst_jax.config import Config
from kst_jax.data import labels, measurements, preparing, receivers
from kst_jax.data.fourier import fft2c
from kst_jax.data.receivers import Receivers
from kst_jax.data.sources import Scan, Source
from kst_jax.data_config import CoilsConfig
from kst_jax.errors import InputError
from kst_jax.programs import files


def estimate(source: Source, config: Config, folder: Path, sets: int = 1) -> Source:
    """Returns the source with the maps of its slices, for `data.coils`.

    Files that the folder has already are kept.

    Args:
      source: slices.
      config: settings of the data.
      folder: where the maps are kept.
      sets: sets of simulated coils for each person.

    Raises:
      InputError: maps cannot be estimated, or the folder cannot be written to.
    """
    if config.data.coils.count == 1:
        return source
    folder = files.local_folder(folder)
    files.make_folder(folder)
    paths, jobs = {}, []
    for scan, numbers in _by_scan(source):
        missing = {}
        for coil_set in range(sets if scan.volume.coils == 1 else 1):
            path = folder / _name(scan, numbers, source, config, coil_set)
            paths[scan.name, coil_set] = path
            if not path.exists():
                missing[coil_set] = path
        jobs.append((scan, numbers, missing))
    total = sum(len(missing) for _, _, missing in jobs)
    with tqdm(desc="Sensitivity maps", unit="set", total=total, delay=3) as bar:
        for scan, numbers, missing in jobs:
            if missing:
                _write(scan, numbers, source, config, missing, bar)
    return dataclasses.replace(source, receivers=Receivers(paths))


def _by_scan(source: Source) -> Iterator[tuple[Scan, list[int]]]:
    """Yields each scan with the numbers of its slices."""
    numbers: dict[str, list[int]] = {}
    for number, (scan, _) in enumerate(source.entries):
        numbers.setdefault(scan.name, []).append(number)
    for group in numbers.values():
        yield source.entries[group[0]][0], group


def _name(
    scan: Scan, numbers: list[int], source: Source, config: Config, coil_set: int
) -> str:
    """Names the file of maps by all that determines them."""
    data, about = config.data, scan.volume.path.stat()
    made_of = (
        *(scan.file, scan.subject, about.st_size, about.st_mtime_ns, coil_set),
        *(source.entries[number][1] for number in numbers),
        *(data.native, data.size, data.crop, data.pad, data.plane, data.resize),
        *(data.coils.count, data.coils.calibration, data.coils.maps),
        *([config.mask.kind] if config.mask.measured else []),
    )
    digest = hashlib.sha256(files.encoded(repr(made_of))).hexdigest()
    return f"{labels.result_name(scan.file)}-{digest[:16]}.h5"


def _write(
    scan: Scan,
    numbers: list[int],
    source: Source,
    config: Config,
    paths: dict[int, Path],
    bar: tqdm,
) -> None:
    """Estimates a scan's maps for some sets of coils."""
    grid = preparing.grid_of(source, numbers[0], config)
    slices = [source.entries[number][1] for number in numbers]
    if config.mask.measured:
        samples = (source.sample(number) for number in numbers)
        seen = [measurements.of_sample(x, grid.shape[0]).calibration for x in samples]
    else:
        views = [preparing.view(number, source, config, grid) for number in numbers]
        seen = [view.image for view in views]
    for coil_set, path in paths.items():
        spectra = seen
        if not config.mask.measured:
            spectra = _spectra(scan, seen, config, coil_set)
        compression, maps = _estimated(scan, slices, spectra, config)
        with files.whole(path) as partial, h5py.File(partial, "w") as file:
            file["slices"], file["compression"] = slices, compression
            file["maps"] = maps
        bar.update()


def _spectra(
    scan: Scan, images: list[np.ndarray], config: Config, coil_set: int
) -> list[np.ndarray]:
    """Returns k-space (C, H, W) that a scan's coils, or simulated ones, see."""
    if scan.volume.coils == 1:
        shape, count = images[0].shape, config.data.coils.count
        sensitivity = receivers.simulated(scan.subject, coil_set, shape, count)
        images = [sensitivity * image for image in images]
    return [fft2c(image) for image in images]


def _estimated(
    scan: Scan, slices: list[int], spectra: list[np.ndarray], config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Returns compression (V, C) and maps (S, V, H, W) of k-space (C, H, W)."""
    options = config.data.coils
    try:
        centres = spectra  # all that was measured, as when it is reconstructed
        if not config.mask.measured:
            centres = [
                coils.calibration_region(spectrum, options.calibration, least=4)
                for spectrum in spectra
            ]
        compression = coils.compression(np.stack(centres), options.count)
    except InputError as error:
        raise InputError(f"{scan.volume.path}: {error}") from None
    # Augmentation moves what simulated coils see, so their maps cover all of the image.
    crop, maps = 0.0 if scan.volume.coils == 1 else 0.8, []
    for index, spectrum in zip(slices, spectra, strict=True):
        virtual = np.asarray(coils.compress(spectrum, compression))
        try:
            maps.append(maps_of(virtual, options, crop))
        except InputError as error:
            raise InputError(f"{scan.volume.path}: slice {index}: {error}") from None
    return compression, np.stack(maps)


def maps_of(kspace: np.ndarray, options: CoilsConfig, crop: float = 0.8) -> np.ndarray:
    """Estimates maps from k-space (..., C, H, W); `crop` is ESPIRiT's.

    Raises:
      InputError: the k-space has too small a fully sampled centre, or no signal.
    """
    if options.maps == "low_resolution":
        return np.asarray(coils.low_resolution_maps(kspace, options.calibration))
    return np.asarray(coils.espirit(kspace, options.calibration, crop=crop))
