"""Prepares measured slices for a network, on the host."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kst_jax import sampling, tokens
from kst_jax.config import Config
from kst_jax.data import measurements, native, preparing, samples, transforms
from kst_jax.data.fourier import ifft2c
from kst_jax.data.measurements import Measurement
from kst_jax.data.off_grid import OffGridVolume
from kst_jax.data.transforms import Normalisation
from kst_jax.data.volumes import AnyVolume
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.patches import Layout
from kst_jax.reconstruct import off_grid
from kst_jax.reconstruct.off_grid import OffGrid

AnyMeasurement = Measurement | OffGrid


@dataclasses.dataclass(frozen=True, eq=False)
class Undersampling:
    """The source of the masks, if not the scans themselves.

    Attributes:
      mask: (W,) or (H, W), True where sampled; overrides the masks of files.
      acceleration: at which the network's pattern undersamples a fully sampled scan,
        for a try; 0 for scans that are undersampled already.
    """

    mask: np.ndarray | None = None
    acceleration: float = 0.0


def measure(
    volume: AnyVolume, index: int, config: Config, undersampling: Undersampling
) -> AnyMeasurement | None:
    """Reads one slice, and finds or draws its mask or, for a try, its trajectory.

    Returns None for a blank slice of a magnitude volume: its image is zero.

    Args:
      volume: a scan.
      index: number of the slice.
      config: the config of the network's run, with its undersampling pattern.
      undersampling: the user's mask or acceleration, if given.

    Raises:
      InputError: k-space or mask cannot be used; the scan of one coil is fully sampled,
        but no acceleration is given; or it is undersampled, and one is given.
    """
    if isinstance(volume, OffGridVolume):
        return off_grid.measure(volume, index)
    sample = volume.sample(index)
    if sample.simulated and not sample.kspace.any():
        return None
    if undersampling.mask is not None:
        sample = dataclasses.replace(sample, mask=undersampling.mask)
    empty = native.empty_columns(sample, sample.kspace.shape[-2:])
    mask = samples.sampling_mask(sample, empty)
    if (mask | empty).all() and (volume.coils == 1 or undersampling.acceleration):
        if not undersampling.acceleration:
            raise InputError(
                f"{sample.where}: is fully sampled; nothing to reconstruct. Compare "
                "networks on it with kst-eval, or undersample it for a try with "
                "--acceleration=4."
            )
        return _undersampled(
            measurements.cropped(sample, mask, empty),
            config,
            undersampling.acceleration,
            (volume.path.name, index),
        )
    if undersampling.acceleration:
        raise InputError(
            f"{sample.where}: is already undersampled; leave out --acceleration."
        )
    return measurements.cropped(sample, mask, empty)


def _undersampled(
    whole: Measurement, config: Config, acceleration: float, place: tuple[str, int]
) -> AnyMeasurement:
    """Undersamples a slice as in the network's training.

    Args:
      whole: the fully sampled slice.
      config: the config of the network's run.
      acceleration: of the result.
      place: name of the file and number of the slice, which decide the mask.

    Raises:
      InputError: the network has no pattern for other accelerations.
    """
    if config.mask.off_grid:
        return off_grid.simulate(
            whole.kspace, whole.geometry, config, acceleration, place
        )
    if not config.mask.accelerates:
        raise InputError(
            "--acceleration: the network's masks come from a bank or from its scans, "
            "which have no other acceleration. Test it on fully sampled scans with "
            "kst-eval."
        )
    pattern = sampling.sampler(_at(config.mask, acceleration), whole.mask.shape)
    mask = pattern.fixed(*place, config.eval.seed) & ~whole.empty
    kspace = calibration = np.where(mask, whole.kspace, 0)
    if whole.calibration is not whole.kspace:  # lines of their own
        calibration = whole.calibration
    return dataclasses.replace(whole, kspace=kspace, mask=mask, calibration=calibration)


def _at(config: MaskConfig, acceleration: float) -> MaskConfig:
    """Returns the pattern at an acceleration, with the centre of the nearest one."""
    distances = [abs(one - acceleration) for one in config.accelerations]
    fraction = config.center_fractions[int(np.argmin(distances))]
    return dataclasses.replace(
        config, acceleration=acceleration, center_fraction=fraction
    )


def layout_of(
    slices: Sequence[AnyMeasurement], patch: tuple[int, int]
) -> Layout | None:
    """Returns the layout of tokens on the grid; off it, slices are sampled alike."""
    masks = [one.mask for one in slices if isinstance(one, Measurement)]
    return Layout.of(*masks, patch=patch) if masks else None


def tokenise(
    measurement: AnyMeasurement,
    maps: np.ndarray | None,
    config: Config,
    layout: Layout | None,
    where: str,
) -> tuple[dict[str, np.ndarray], Normalisation]:
    """Normalises a slice by its measured values and makes its tokens.

    Args:
      measurement: the slice.
      maps: sensitivity maps (C, H, W, 2); None for one coil.
      config: the config of the network's run, with its normalisation.
      layout: of the tokens in the batch; see `layout_of`.
      where: names the slice.

    Returns:
      The fields of `tokens.Batch`, and the scaling.

    Raises:
      InputError: the slice has no scale.
    """
    if isinstance(measurement, OffGrid):
        rows, columns = measurement.calibration.shape[-2:]
        fields, scaling = preparing.tokenise_readouts(
            measurement.kspace,
            measurement.trajectory,
            (rows, columns),
            None if maps is None else maps[..., 0] + 1j * maps[..., 1],
            config.model.patch,
            where,
        )
    else:
        fields, scaling = _on_grid(measurement, config, layout, where)
    return fields if maps is None else fields | {"maps": maps}, scaling


def _on_grid(
    measurement: Measurement, config: Config, layout: Layout | None, where: str
) -> tuple[dict[str, np.ndarray], Normalisation]:
    kspace, mask = measurement.kspace, measurement.mask
    if config.data.normalise == "target":
        # The zero-filled image takes the place of the target, which is unknown.
        everything = np.ones(mask.shape, bool)
        _, channels, normalisation = transforms.normalise(
            ifft2c(kspace), everything, "target", where
        )
    else:
        channels = np.stack([kspace.real, kspace.imag], axis=-1)
        normalisation = transforms.scale_of(channels[..., mask, :], mask.size, where)
        channels = channels / np.float32(normalisation.std)
    empty = measurement.empty if measurement.empty.any() else None
    return tokens.tokenise(channels, mask, layout, empty), normalisation


def differences(
    measurement: AnyMeasurement,
    config: Config,
    simulated: bool,
    pixel: tuple[float, float] | None = None,
    fields: Sequence[tuple[float, float]] = (),
) -> dict[str, str]:
    """Describes how a slice differs from the network's training, by kind.

    A network may do badly, or well, on scans unlike its training scans; users should
    know.

    Args:
      measurement: the slice.
      config: the config of the network's run.
      simulated: whether the slice is a magnitude.
      pixel: height and width of its pixels in mm, if known.
      fields: heights and widths in mm of the training images, if known.
    """
    found = {}
    rows, columns = measurement.calibration.shape[-2:]
    if not config.data.native and (rows, columns) != tuple(config.data.size):
        found["matrix"] = (
            f"has a matrix of {rows} x {columns}; the network was trained on "
            f"{config.data.size[0]} x {config.data.size[1]}"
        )
    if pixel and fields:
        field = rows * pixel[0], columns * pixel[1]
        if not any(_alike(field, other) for other in fields):
            others = " and ".join(f"{h:.0f} x {w:.0f}" for h, w in fields[:3])
            found["field"] = (
                f"covers {field[0]:.0f} x {field[1]:.0f} mm; the network was trained "
                f"on {others} mm"
            )
    if isinstance(measurement, OffGrid):
        return found | off_grid.differences(measurement, config)
    return found | _of_mask(measurement, config, simulated)


def _of_mask(
    measurement: Measurement, config: Config, simulated: bool
) -> dict[str, str]:
    """Describes how a slice's sampling and phase differ from the training."""
    found, mask, trained = {}, measurement.mask, config.mask
    acceleration = measurement.acceleration
    if trained.accelerates and not any(
        0.8 < acceleration / one < 1.25 for one in trained.accelerations
    ):
        times = " and ".join(f"{one:g}" for one in trained.accelerations)
        found["acceleration"] = (
            f"is undersampled {acceleration:.1f} times; the network was trained on "
            f"{times} times"
        )
    lines, trained_on_lines = (mask == mask[:1]).all(), _has_lines(config)
    if trained_on_lines is not None and lines != trained_on_lines:
        names = {True: "whole columns", False: "single points"}
        found["pattern"] = (
            f"is sampled by {names[bool(lines)]}; the network was trained on "
            f"{names[trained_on_lines]}"
        )
    one_coil = measurement.kspace.ndim == 2  # coils have phases of their own
    if one_coil and not simulated and _trained_without_phase(config):
        asymmetry = _asymmetry(measurement)
        if asymmetry > 0.1:
            found["phase"] = (
                "has an image with a phase; the network was trained on magnitudes "
                "without phase (data.augment.phase)"
            )
    return found


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(0.8 < a / b < 1.25 for a, b in zip(one, other, strict=True))


def _has_lines(config: Config) -> bool | None:
    """Returns whether a network was trained on whole columns; None if unknown."""
    if not config.mask.accelerates:
        return None
    return (
        config.mask.kind == "uniform_1d" or config.mask.kind in sampling.FASTMRI_MASKS
    )


def _trained_without_phase(config: Config) -> bool:
    """Returns whether all training scans are magnitudes, judging by their names."""
    parts = [part.lower() for part in config.data.train.split(",")]
    volumes = (".nii", ".nii.gz", ".hdr")
    simulated = all(
        part.startswith("demo:") or part.endswith(volumes) for part in parts
    )
    return simulated and not config.data.augment.phase


def _asymmetry(measurement: Measurement) -> float:
    """Returns how far sampled points k and -k are from conjugates, relative: 0 to 2."""
    kspace, mask = measurement.kspace, measurement.mask
    # In a grid of odd sizes about the centre, reversing both axes takes k to -k.
    square = tuple(slice(1 - n % 2, None) for n in mask.shape)
    kspace, mask = kspace[square], mask[square]
    both = mask & mask[::-1, ::-1]
    pairs = kspace[both]
    norm = np.linalg.norm(pairs)
    if not norm:
        return 0.0
    # A constant phase of the whole image does not matter.
    partners = kspace[::-1, ::-1].conj()[both]
    turn = np.vdot(partners, pairs)
    turn = turn / abs(turn) if turn else 1
    return float(np.linalg.norm(pairs - turn * partners) / norm)
