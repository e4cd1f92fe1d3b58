"""The masks of scans that were undersampled at the scanner, for training on them."""

import dataclasses

import numpy as np
from tqdm import tqdm

from kst_jax import sampling
from kst_jax.config import Config
from kst_jax.data import measurements, native, splits
from kst_jax.data.sources import Scan, Source
from kst_jax.data.splits import Splitter
from kst_jax.data.volumes import reading
from kst_jax.errors import InputError
from kst_jax.patches import samples_lines
from kst_jax.sampling import Sampler, Shape

# By file and number of the slice, as in `sources.About`: (1, W) if whole columns were
# measured, else (H, W).
Masks = dict[tuple[str, int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredSampler(Sampler):
    """Knows the mask of each slice.

    Attributes:
      masks: masks of all slices by their shape (H, W).
    """

    masks: dict[Shape, Masks]

    def at(self, shape: Shape) -> "MeasuredSampler":
        """Returns the sampler of the slices of another shape."""
        return self if shape == self.shape else _at(self, shape)

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Draws one of the masks (H, W)."""
        known = list(self.masks[self.shape].values())
        return np.broadcast_to(known[rng.integers(len(known))], self.shape)

    def fixed(self, file: str, index: int, seed: int) -> np.ndarray:
        """Returns the mask (H, W) of one slice."""
        del seed
        return np.broadcast_to(self.masks[self.shape][file, index], self.shape)

    def fixed_acceleration(self, file: str) -> None:
        """Nothing is known about a file but its masks."""


def sampler_of(source: Source, config: Config) -> MeasuredSampler:
    """Reads the masks of all slices, from the files' headers where these have them.

    In a scan without a mask, zeros of k-space mark what was not measured.

    Args:
      source: slices of native scans; one or more.
      config: has `mask.kind` "measured".

    Raises:
      InputError: a slice is fully sampled, or its mask cannot be used.
    """
    masks: dict[Shape, Masks] = {}
    known: dict[tuple, np.ndarray] = {}  # a scan's slices often have one mask
    for scan, index in tqdm(source.entries, "Measured points", unit="slice", delay=3):
        shape = native.grid_of(scan.volume).shape
        mask = _mask_of(scan, index, shape[0])
        mask = mask[:1] if samples_lines(mask) else mask
        mask = known.setdefault((mask.shape, mask.tobytes()), np.array(mask))
        masks.setdefault(shape, {})[scan.file, index] = mask
    return _made(config, masks)


def training_part(whole: MeasuredSampler, config: Config) -> MeasuredSampler:
    """Takes the points away by which `train.validation_share` validates.

    They are those that the validation of these slices holds out, always the same ones
    of a slice (`splits.Splitter`).
    """
    share, seed = config.train.validation_share, config.data.split_seed
    masks: dict[Shape, Masks] = {}
    for shape, group in whole.masks.items():
        splitter = Splitter(share, shape, whole.at(shape).lines)
        masks[shape] = {}
        for (file, index), mask in group.items():
            rng = sampling.slice_rng(file, index, seed, splits.SPLIT)
            seen = splitter.split(rng, np.broadcast_to(mask, shape))[0]
            masks[shape][file, index] = seen[: len(mask)]
    return _made(config, masks)


def require_parts(sampler: MeasuredSampler, share: float, setting: str) -> None:
    """Raises InputError if the split of a slice leaves nothing to compare.

    Args:
      sampler: masks to split.
      share: of the places to hold out.
      setting: name of the setting that sets the share.
    """
    for shape, group in sampler.masks.items():
        splitter = Splitter(share, shape, sampler.at(shape).lines)
        for (file, index), mask in group.items():
            points = int(np.broadcast_to(mask, shape).sum())
            if splitter.seen(points) == points:
                places = f"{points} points"
                if splitter.lines:
                    places = f"{points // shape[0]} columns"
                raise InputError(
                    f"{file}, slice {index}: {setting}={share} leaves none of its "
                    f"{places} to compare with, since {splitter.centre.sum()} in the "
                    f"centre are always seen; raise {setting}, or leave the scan out"
                )


def _mask_of(scan: Scan, index: int, rows: int) -> np.ndarray:
    """Returns the measured points (rows, W) of a slice, its readout cropped."""
    where = f"{scan.volume.path}: slice {index}"
    with reading(scan.volume.path):
        mask = scan.volume.sampled(index)
        if mask is None:
            mask = measurements.of_sample(scan.volume.sample(index), rows).mask
        else:
            mask = measurements.cropped_mask(mask, rows, where)
    geometry = scan.volume.geometry
    empty = np.zeros_like(mask) if geometry is None else geometry.empty(mask.shape)
    full = (mask | empty).all()
    if full or not mask.any():
        what = "is fully sampled" if full else "has no sampled point"
        raise InputError(
            f"{where} {what}, but config.mask.kind='measured' trains on scans that "
            "were undersampled at the scanner. Leave it out; fully sampled scans train "
            "with targets, or undersampled by another mask.kind."
        )
    return mask


def _made(config: Config, masks: dict[Shape, Masks]) -> MeasuredSampler:
    """Returns the sampler of the first shape."""
    empty = MeasuredSampler(config.mask, (0, 0), None, (), lines=False, masks=masks)
    return _at(empty, next(iter(masks)))


def _at(sampler: MeasuredSampler, shape: Shape) -> MeasuredSampler:
    """Returns the sampler for slices of a shape, with the range of their points."""
    group = sampler.masks[shape].values()
    counts = [int(mask.sum()) * shape[0] // len(mask) for mask in group]
    buckets = ((min(counts), max(counts)),)
    lines = all(len(mask) == 1 for mask in group)
    return dataclasses.replace(sampler, shape=shape, buckets=buckets, lines=lines)
