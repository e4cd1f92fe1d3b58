"""From measured slices to what a network takes, on the host."""

import dataclasses

import numpy as np

from kst_jax import sampling, tokens
from kst_jax.config import Config
from kst_jax.data import samples, transforms
from kst_jax.data.fourier import ifft2c
from kst_jax.data.samples import Geometry, Sample
from kst_jax.data.transforms import Normalisation
from kst_jax.data.volumes import Volume
from kst_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """One slice, ready for a network.

    Attributes:
      kspace: complex64 (H, W), zero where not sampled; a readout with more rows than
        the image is cropped to them.
      mask: (H, W), True where sampled.
      geometry: of the scan, or None.
    """

    kspace: np.ndarray
    mask: np.ndarray
    geometry: Geometry | None


@dataclasses.dataclass(frozen=True, eq=False)
class Undersampling:
    """Where the mask of a scan comes from, if not from its file.

    Attributes:
      mask: (W,) or (H, W), True where sampled; it overrides the file's.
      acceleration: undersamples a fully sampled scan by the network's pattern, for a
        try; 0 does not.
    """

    mask: np.ndarray | None = None
    acceleration: float = 0.0


def measure(
    volume: Volume, index: int, config: Config, undersampling: Undersampling
) -> Measurement:
    """Reads one slice, and finds or draws its mask.

    Args:
      volume: a scan.
      index: number of the slice.
      config: of the network's run; its pattern undersamples for a try.
      undersampling: what the user asks for.

    Raises:
      InputError: k-space or a mask that cannot be used, or a scan that is complete.
    """
    sample = volume.sample(index)
    if undersampling.mask is not None:
        sample = dataclasses.replace(sample, mask=undersampling.mask)
    mask = samples.sampling_mask(sample)
    if mask.all():
        if not undersampling.acceleration:
            raise InputError(
                f"{sample.where}: is fully sampled, so nothing is to reconstruct. "
                "Compare networks on it with kst-eval, or undersample it for a try "
                "with --acceleration=4."
            )
        mask = _drawn(volume, index, mask.shape, config, undersampling.acceleration)
    elif undersampling.acceleration:
        raise InputError(
            f"{sample.where}: is undersampled already; leave out --acceleration."
        )
    return _cropped(sample, mask)


def _drawn(
    volume: Volume, index: int, shape: tuple, config: Config, acceleration: float
) -> np.ndarray:
    if config.mask.kind == "bank":
        raise InputError(
            "--acceleration: the network's masks come from a bank; give one of them "
            "with --mask"
        )
    pattern = dataclasses.replace(config.mask, acceleration=acceleration)
    sampler = sampling.sampler(pattern, shape)
    return sampler.fixed(volume.path.name, index, config.eval.seed)


def _cropped(sample: Sample, mask: np.ndarray) -> Measurement:
    """Crops an oversampled readout, which whole columns allow."""
    kspace, geometry = np.where(mask, sample.kspace, 0), sample.geometry
    rows = geometry.matrix[0] if geometry else len(kspace)
    if rows < len(kspace):
        if not (mask == mask[:1]).all():
            raise InputError(
                f"{sample.where}: the readout has {len(kspace)} rows for an image of "
                f"{rows}, but its points are sampled one by one, so it cannot be "
                "cropped. Crop the readout before undersampling."
            )
        kspace, mask = samples.crop_readout(kspace, rows), mask[:rows]
    return Measurement(kspace.astype(np.complex64), mask, geometry)


def tokenise(
    measurement: Measurement, config: Config, counts: tuple[int, int], where: str
) -> tuple[dict[str, np.ndarray], Normalisation]:
    """Normalises a slice by what was measured and makes tokens of it.

    Args:
      measurement: the slice.
      config: of the network's run, which tells how it was normalised there.
      counts: least and largest number of sampled points in the batch.
      where: names the slice.

    Returns:
      The fields of `tokens.Batch`, and what normalisation did.
    """
    kspace, mask = measurement.kspace, measurement.mask
    if config.data.normalise == "target":
        # The zero-filled image takes the place of the target, which nobody knows.
        everything = np.ones(mask.shape, bool)
        _, channels, normalisation = transforms.normalise(
            ifft2c(kspace), everything, "target", where
        )
    else:
        channels = np.stack([kspace.real, kspace.imag], axis=-1)
        normalisation = transforms.scale_of(channels[mask], mask.size, where)
        channels = channels / np.float32(normalisation.std)
    return tokens.tokenise(channels, mask, counts), normalisation


def differences(
    measurement: Measurement, config: Config, simulated: bool
) -> dict[str, str]:
    """How a slice differs from what the network was trained on, by the kind of it.

    A network may do badly, or well, on what it was not trained on: users should know.
    """
    found, mask, trained = {}, measurement.mask, config.mask
    if mask.shape != tuple(config.data.size):
        found["matrix"] = (
            f"a matrix of {mask.shape[0]} x {mask.shape[1]}, where the network was "
            f"trained on {config.data.size[0]} x {config.data.size[1]}"
        )
    acceleration = mask.size / mask.sum()
    if trained.kind != "bank" and not 0.8 < acceleration / trained.acceleration < 1.25:
        found["acceleration"] = (
            f"undersampled {acceleration:.1f} times, where the network was trained on "
            f"{trained.acceleration:g} times"
        )
    lines, trained_on_lines = (mask == mask[:1]).all(), _has_lines(config)
    if trained_on_lines is not None and lines != trained_on_lines:
        names = {True: "whole columns", False: "single points"}
        found["pattern"] = (
            f"sampled by {names[bool(lines)]}, where the network was trained on "
            f"{names[trained_on_lines]}"
        )
    if not simulated and _trained_without_phase(config):
        asymmetry = _asymmetry(measurement)
        if asymmetry > 0.1:
            found["phase"] = (
                "an image with a phase, where the network was trained on magnitudes "
                "without (data.augment.phase)"
            )
    return found


def _has_lines(config: Config) -> bool | None:
    """Whether a network was trained on whole columns; None if nothing tells."""
    if config.mask.kind == "bank":
        return None
    return (
        config.mask.kind == "uniform_1d" or config.mask.kind in sampling.FASTMRI_MASKS
    )


def _trained_without_phase(config: Config) -> bool:
    """Whether all of the training scans are magnitudes, as far as their names tell."""
    parts = [part.lower() for part in config.data.train.split(",")]
    volumes = (".nii", ".nii.gz", ".hdr")
    simulated = all(
        part.startswith("demo:") or part.endswith(volumes) for part in parts
    )
    return simulated and not config.data.augment.phase


def _asymmetry(measurement: Measurement) -> float:
    """How far sampled points k and -k are from conjugates, relative: 0 to 2."""
    kspace, mask = measurement.kspace, measurement.mask
    # In a grid of odd sizes about the centre, reversing both axes takes k to -k.
    square = tuple(slice(1 - n % 2, None) for n in mask.shape)
    kspace, mask = kspace[square], mask[square]
    both = mask & mask[::-1, ::-1]
    pairs = kspace[both]
    norm = np.linalg.norm(pairs)
    if not norm:
        return 0.0
    # A constant phase of the whole image is none that matters.
    partners = kspace[::-1, ::-1].conj()[both]
    turn = np.vdot(partners, pairs)
    turn = turn / abs(turn) if turn else 1
    return float(np.linalg.norm(pairs - turn * partners) / norm)
