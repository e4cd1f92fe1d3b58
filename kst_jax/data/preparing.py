"""Prepares one slice of a scan for training or evaluation."""

from typing import Any, NamedTuple

import numpy as np

from kst_jax import readouts, tokens
from kst_jax.birdcage import birdcage
from kst_jax.config import Config
from kst_jax.data import measurements, native, nufft, splits, transforms
from kst_jax.data.fourier import ifft2c
from kst_jax.data.native import Grid, View
from kst_jax.data.receivers import Receiver
from kst_jax.data.sources import Source
from kst_jax.patterns import Patterns
from kst_jax.trajectories import Trajectory


def grid_of(source: Source, number: int, config: Config) -> Grid:
    """Returns the sizes at which networks see a slice."""
    if not config.data.native:
        return Grid(config.data.size)
    return native.grid_of(source.entries[number][0].volume)


def view(
    number: int,
    source: Source,
    config: Config,
    grid: Grid,
    change: transforms.Change | None = None,
) -> View:
    """Reads a slice at its measured size, or cuts its field of view and resizes it.

    Args:
      number: of the slice in the source.
      source: slices.
      config: settings of the data.
      grid: sizes of the result.
      change: random change; only for slices that are resized.

    Raises:
      InputError: the slice cannot be used.
    """
    data = config.data
    if config.mask.measured:
        found = measurements.of_sample(source.sample(number), grid.shape[0])
        # Its samples are those of the zero-filled image.
        image, kspace = ifft2c(found.kspace), found.kspace
        return View(image, simulated=False, empty=found.empty, kspace=kspace)
    if data.native:
        return native.view(source.sample(number), grid)
    item = source[number]
    # Before the crop, so that a rotation brings in real values from outside it.
    image = transforms.augment(item.image, change) if change else item.image
    image = transforms.field_of_view(image, data, f"{item.file}, slice {item.index}")
    image = transforms.fourier_resize(image, data.size, data.resize)
    # A measured image has a phase.
    return View(image, simulated=not item.image.imag.any())


# A mask (H, W), or off the grid a trajectory.
Pattern = np.ndarray | Trajectory


class Scan(NamedTuple):
    """A slice as receiver coils see it, before undersampling.

    Attributes:
      image: fully sampled, complex64 (H, W), or (C, H, W) of coils with maps;
        zero-filled if the scanner undersampled the scan.
      maps: sensitivity maps (C, H, W) that combine the coils; None for one coil.
      empty: (H, W), True where k-space is zero without a measurement; None if nowhere.
      peak: largest magnitude of the volume, in the scan's units; None if unknown.
      kspace: the image's centred k-space; None if it has yet to be computed.
    """

    image: np.ndarray
    maps: np.ndarray | None
    empty: np.ndarray | None
    peak: float | None
    kspace: np.ndarray | None = None

    def sampled(self, mask: np.ndarray) -> np.ndarray:
        """Returns the points (H, W) of a mask that are measured."""
        return mask if self.empty is None else mask & ~self.empty

    def flipped(self, change: transforms.Change) -> "Scan":
        """Flips what the coils see, and the coils with it."""
        image, maps, empty = self.image, self.maps, self.empty
        return self._replace(
            image=transforms.flip(image, change),
            maps=None if maps is None else transforms.flip(maps, change),
            empty=None if empty is None else transforms.flip_kspace(empty, change),
            kspace=None if change.flips else self.kspace,
        )


def scan(
    view: View,
    config: Config,
    rng: np.random.Generator,
    receiver: Receiver | None = None,
) -> Scan:
    """Returns what coils see of a slice; a simulated one gets its phase and noise.

    Args:
      view: the slice.
      config: settings of the data.
      rng: source of phase and noise.
      receiver: the coils that see the slice; None for one coil.
    """
    image, kspace, maps, empty = view.image, view.kspace, None, view.empty
    if receiver is not None and receiver.simulated is not None and empty is not None:
        # The sensitivities of simulated coils spread k-space into these places.
        empty = np.zeros_like(empty)
    if receiver is not None:
        image, kspace, maps = _seen(view, config, rng, receiver), None, receiver.maps
        if config.data.coils.combine:
            image, maps = _combined(image, maps), None
    elif view.simulated:
        image = transforms.simulate_scan(image, config.data.augment, rng)
        kspace = None
    return Scan(image, maps, empty, view.peak, kspace)


def tokenise(
    scan: Scan,
    pattern: Pattern,
    layout: Any,
    config: Config,
    where: str,
    held_out: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], transforms.Normalisation]:
    """Undersamples a slice.

    Args:
      scan: the slice.
      pattern: what the network sees: a mask (H, W), True where it sees samples, or a
        trajectory.
      layout: of the tokens in the batch.
      config: settings of the data.
      where: names the slice.
      held_out: (H, W) weights of errors at samples that it does not see; see
        `kst_jax.data.splits`. None with targets.

    Returns:
      The fields of `tokens.Batch`, and the scaling.

    Raises:
      InputError: the slice cannot be scaled, or nothing of it is sampled.
    """
    if isinstance(pattern, Trajectory):
        channels, fields, scaling = _off_grid(scan, pattern, layout.patch, where)
    else:
        channels, kspace, scaling = transforms.normalise(
            scan.image,
            scan.sampled(pattern),
            config.data.normalise,
            where,
            scan.maps,
            scan.kspace,
        )
        fields = tokens.tokenise(kspace, pattern, layout, scan.empty)
    if config.data.coils.target == "rss":
        magnitude = native.root_sum_of_squares(scan.image) / np.float32(scaling.std)
        channels = np.stack([magnitude, 0 * magnitude], axis=-1)
    if not config.mask.measured:  # of these scans nobody knows the image
        fields["image"] = channels
    if scan.maps is not None:
        fields["maps"] = _channels(scan.maps)
    if held_out is not None:
        fields |= splits.compared(kspace, held_out)
    elif config.train.error == "ssim":
        known = scan.peak and scan.peak / scaling.std
        peak = known or np.linalg.norm(channels, axis=-1).max()
        fields["peak"] = np.asarray(peak, np.float32)
    return fields, scaling


def _off_grid(
    scan: Scan, trajectory: Trajectory, patch: tuple[int, int], where: str
) -> tuple[np.ndarray, dict[str, np.ndarray], transforms.Normalisation]:
    """Returns the target (H, W, 2), the fields of the samples, and the scaling."""
    rows, columns = scan.image.shape[-2:]
    samples = nufft.to_samples(scan.image, trajectory.points)
    fields, scaling = tokenise_readouts(
        samples, trajectory, (rows, columns), scan.maps, patch, where
    )
    target = _channels(_combined(scan.image, scan.maps))
    return target / np.float32(scaling.std), fields, scaling


def tokenise_readouts(
    samples: np.ndarray,
    trajectory: Trajectory,
    shape: tuple[int, int],
    maps: np.ndarray | None,
    patch: tuple[int, int],
    where: str,
) -> tuple[dict[str, np.ndarray], transforms.Normalisation]:
    """Scales readouts so that their gridded image has a mean square of 1.

    The gridded image is that of the samples times their density, its coils combined.

    Args:
      samples: complex64 (R, S), or (C, R, S) of several coils.
      trajectory: their places, R readouts of S samples.
      shape: rows and columns (H, W) of the image.
      maps: complex sensitivity maps (C, H, W) that combine the coils; None for one.
      patch: rows and columns of a patch.
      where: names the slice.

    Returns:
      The fields of `tokens.Batch` without the image and the maps, and the scaling.

    Raises:
      InputError: the samples have no scale, or do not fit their trajectory.
    """
    weighted = samples * trajectory.density
    gridded = _combined(nufft.to_image(weighted, trajectory.points, shape), maps)
    scaling = transforms.scale_of(_channels(gridded), gridded.size, where)
    scaled = samples / np.float32(scaling.std)
    return readouts.tokenise(scaled, trajectory, shape, patch), scaling


def _combined(image: np.ndarray, maps: np.ndarray | None) -> np.ndarray:
    """Combines what coils see, (C, H, W), into one image; leaves an image (H, W)."""
    return image if maps is None else (maps.conj() * image).sum(axis=0)


def _channels(image: np.ndarray) -> np.ndarray:
    return np.stack([image.real, image.imag], axis=-1)


def example(
    config: Config, sampler: Patterns, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns the fields of `tokens.Batch` for a slice of random values."""
    size, coils, patch = sampler.shape, config.data.coils, config.model.patch
    pattern, layout = sampler.random(rng), sampler.layout(patch)
    lead = (coils.count,) if coils.separate else ()
    fields = {"image": rng.normal(size=(*size, 2)).astype(np.float32)}
    if coils.separate:
        fields["maps"] = _channels(birdcage(0, size, coils.count))
    if isinstance(pattern, Trajectory):
        samples = rng.normal(size=(*lead, *pattern.points.shape))
        complex_ = samples.view(np.complex128)[..., 0].astype(np.complex64)
        return readouts.tokenise(complex_, pattern, size, patch) | fields
    kspace = rng.normal(size=(*lead, *size, 2)).astype(np.float32)
    if splitter := splits.splitter_of(config, sampler):
        layout = splitter.layout(layout)
        pattern, held_out = splitter.split(rng, pattern)
        fields |= splits.compared(kspace, held_out)
    return tokens.tokenise(kspace, pattern, layout) | fields


def _seen(
    view: View, config: Config, rng: np.random.Generator, receiver: Receiver
) -> np.ndarray:
    """Returns what virtual coils see of a slice, (V, H, W)."""
    image = view.image
    if view.simulated:
        image = transforms.simulate_scan(
            image, config.data.augment, rng, receiver.simulated
        )
    elif receiver.simulated is not None:
        image = receiver.simulated * image
    return np.tensordot(receiver.compression, image, 1)
