"""Whether a network takes a scan, and how the scan differs from its training."""

import sys

from kst_jax.config import Config
from kst_jax.data import sources, volumes
from kst_jax.data.off_grid import OffGridVolume
from kst_jax.data.volumes import AnyVolume
from kst_jax.errors import InputError
from kst_jax.models.contract import Reconstructor
from kst_jax.models.registry import build
from kst_jax.reconstruct import inputs
from kst_jax.reconstruct.inputs import AnyMeasurement, Undersampling
from kst_jax.reconstruct.methods import Method


def look(todo: list[AnyVolume], method: Method, undersampling: Undersampling) -> None:
    """Refuses unusable scans; warns of scans unlike the training scans.

    Raises:
      InputError: a scan cannot be used, or the network does not take it.
    """
    sources.warn_of(
        [f"{volume.path}: {doubt}" for volume in todo for doubt in volume.doubts]
    )
    warned: set[str] = set()
    config = method.config
    if config.data.normalise == "target" and todo:
        print(
            "warning: the network was trained on slices normalised by their targets "
            "(data.normalise); here the zero-filled image takes the target's place",
            file=sys.stderr,
        )
    for volume in todo:
        _require_coils(volume, method)
        _require_sampling(volume, method, undersampling)
        with volumes.reading(volume.path):
            measurement = _typical(volume, config, undersampling)
        model_for(config, measurement)
        if method.step is None:  # no training to differ from
            continue
        simulated = not volume.measured
        found = inputs.differences(
            measurement, config, simulated, volume.pixel, method.fields
        )
        for kind, what in found.items():
            if kind not in warned:
                print(f"warning: {volume.path.name}: {what}", file=sys.stderr)
            warned.add(kind)


def _typical(
    volume: AnyVolume, config: Config, undersampling: Undersampling
) -> AnyMeasurement:
    """Returns the slice nearest to the middle of a scan that is not blank.

    Raises:
      InputError: the slice cannot be used, or all are blank.
    """
    middle = len(volume.slices) // 2
    for index in sorted(volume.slices, key=lambda n: abs(n - volume.slices[middle])):
        if found := inputs.measure(volume, index, config, undersampling):
            return found
    raise InputError(f"{volume.path}: all slices are blank. Leave the file out.")


def _require_coils(volume: AnyVolume, method: Method) -> None:
    """Raises InputError if the network does not take a scan's coils."""
    options, found = method.config.data.coils, volume.coils
    if method.step is None and method.config.model.takes_coils:
        if found == 1 and not isinstance(volume, OffGridVolume):
            raise InputError(
                f"{volume.path}: holds k-space of one coil on the grid, where CG-SENSE "
                "gives the zero-filled image. Use a trained network."
            )
        return
    if found == 1 and options.separate:
        raise InputError(
            f"{volume.path}: holds k-space of one coil, but the network was trained "
            f"on {options.count}. Use a network for one coil."
        )
    if found > 1 and not options.separate:
        raise InputError(
            f"{volume.path}: holds k-space of {found} coils, but the network takes "
            "one. Reconstruct it with CG-SENSE (kst-reconstruct sense), or train a "
            "network for several coils (data.coils)."
        )
    if found < options.count and options.separate:
        raise InputError(
            f"{volume.path}: holds k-space of {found} coils, but the network was "
            f"trained on {options.count}. Reconstruct it with CG-SENSE "
            "(kst-reconstruct sense)."
        )


def _require_sampling(
    volume: AnyVolume, method: Method, undersampling: Undersampling
) -> None:
    """Raises InputError if the network was trained on the other kind of sampling."""
    mask, trained = method.config.mask, method.step is not None
    if isinstance(volume, OffGridVolume):
        if undersampling.acceleration or undersampling.mask is not None:
            raise InputError(
                f"{volume.path}: was measured off the grid, along its trajectory; "
                "leave out --acceleration and --mask."
            )
        if trained and not mask.off_grid:
            raise InputError(
                f"{volume.path}: was measured off the grid, but the network was "
                f"trained on the grid (mask.kind={mask.kind!r}). Use a network trained "
                "on such trajectories, or CG-SENSE (kst-reconstruct sense)."
            )
    elif trained and mask.off_grid:
        if undersampling.mask is not None:
            raise InputError(
                f"--mask: the network was trained off the grid (mask.kind="
                f"{mask.kind!r}), where masks have no meaning; leave it out"
            )
        if not undersampling.acceleration:
            raise InputError(
                f"{volume.path}: was measured on the grid, but the network was trained "
                f"off the grid (mask.kind={mask.kind!r}). Use a network trained on the "
                "grid, or CG-SENSE (kst-reconstruct sense); or try the network on a "
                "fully sampled scan with --acceleration=4."
            )


def model_for(config: Config, measurement: AnyMeasurement) -> Reconstructor:
    """Builds the network for the matrix of a scan.

    Raises:
      InputError: the network cannot reconstruct that matrix.
    """
    rows, columns = measurement.calibration.shape[-2:]
    shape = rows, columns
    try:
        model = config.model.resized(config.data.size, shape)
        model.require_size(shape)
    except InputError as error:
        raise InputError(
            f"the network cannot reconstruct a matrix of {shape[0]} x {shape[1]}: "
            f"{error}. Use another network, such as the K-Space Transformer."
        ) from None
    return build(model)
