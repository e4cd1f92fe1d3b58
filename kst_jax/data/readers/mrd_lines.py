"""What the lines of an ISMRMRD file are for, and where they lie in k-space."""

import dataclasses
import threading
from pathlib import Path

import h5py
import numpy as np

from kst_jax.data.readers.fastmri import open_file
from kst_jax.data.readers.mrd_grid import Grid
from kst_jax.errors import InputError

# Numbers of the header's flags; the first is bit 0.
NOISE, CALIBRATION, CALIBRATION_AND_IMAGE, REVERSED = 19, 20, 21, 22
SERVICE = {
    23: "navigator",
    24: "phase correction",
    26: "navigator feedback",
    27: "dummy scan",
    28: "real-time feedback",
    29: "surface coil correction",
    30: "phase stabilisation reference",
    31: "phase stabilisation",
}
# Their samples have variable lengths; HDF5 crashes if several threads read such values.
_ALONE = threading.Lock()
# Lines that differ in one of these belong to different images.
_COUNTERS = ("contrast", "phase", "repetition", "set")


@dataclasses.dataclass(frozen=True, eq=False)
class Acquired:
    """The lines of images and of calibration; all arrays have one value a line.

    Attributes:
      number: places in the file, in ascending order.
      image: number of the image, in the order of contrast, phase, repetition, set and
        slice; -1 if the line is for calibration alone.
      series: number of the contrast, phase, repetition and set.
      rank: number of the slice, along the slices' direction.
      calibration: whether the line serves the sensitivities.
      start: first sample that is data.
      count: number of samples that are data.
      backwards: whether the last sample comes first in k-space.
      length: number of samples, with those that are not data.
      flags: for each kind of line that was met, the number of lines.
    """

    number: np.ndarray
    image: np.ndarray
    series: np.ndarray
    rank: np.ndarray
    calibration: np.ndarray
    start: np.ndarray
    count: np.ndarray
    backwards: np.ndarray
    length: np.ndarray
    flags: dict[str, int]

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.image.max()) + 1

    def of_image(self, index: int) -> np.ndarray:
        """Places in the file of an image's lines."""
        return self.number[self.image == index]

    def samples_of(
        self, line: int, samples: np.ndarray, coils: int, where: str
    ) -> np.ndarray:
        """Returns the data (C, S) of a line.

        Args:
          line: number among these lines.
          samples: real and imaginary parts in turns, coil after coil.
          coils: number of coils.
          where: names the image in messages.

        Raises:
          InputError: the line is not as long as its header says.
        """
        if samples.size != 2 * coils * self.length[line]:
            raise InputError(
                f"{where}: acquisition {self.number[line]} holds {samples.size} "
                f"numbers, but its header tells of {coils} coils and "
                f"{self.length[line]} samples. Copy or convert the file again."
            )
        start = self.start[line]
        return _complex(samples, coils)[:, start : start + self.count[line]]


@dataclasses.dataclass(frozen=True, eq=False)
class Lines(Acquired):
    """Lines on the grid.

    Attributes:
      column: column of the encoded k-space.
      row: first row of the encoded k-space.
    """

    column: np.ndarray
    row: np.ndarray

    def calibration_of(self, index: int) -> np.ndarray:
        """Places of the lines that serve an image's sensitivities.

        They are of its slice, and of its own contrast and repetition if these have
        any.
        """
        first = np.flatnonzero(self.image == index)[0]
        slices = self.calibration & (self.rank == self.rank[first])
        own = slices & (self.series == self.series[first])
        return self.number[own if own.any() else slices]

    def sampled(self, index: int, encoded: tuple[int, int]) -> np.ndarray:
        """Returns the measured points (rows, columns) of an image's encoded k-space."""
        found = np.zeros(encoded, bool)
        for line in np.flatnonzero(self.image == index):
            row = self.row[line]
            found[row : row + self.count[line], self.column[line]] = True
        return found

    def place(
        self,
        numbers: np.ndarray,
        values: np.ndarray,
        coils: int,
        encoded: tuple[int, int],
        where: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Puts lines where they belong; what was measured again is averaged.

        Args:
          numbers: places of the lines in the file.
          values: their samples, real and imaginary parts in turns, coil after coil.
          coils: number of coils.
          encoded: rows and columns of the encoded k-space.
          where: names the image in messages.

        Returns:
          complex64 (C, rows, columns), zero where nothing was measured; and the mask
          (rows, columns).

        Raises:
          InputError: a line is not as long as its header says.
        """
        total = np.zeros((coils, *encoded), np.complex64)
        times = np.zeros(encoded, np.int32)
        places = np.searchsorted(self.number, numbers)
        for line, samples in zip(places, values, strict=True):
            count = self.count[line]
            part = self.samples_of(line, samples, coils, where)
            part = part[:, ::-1] if self.backwards[line] else part
            rows = slice(self.row[line], self.row[line] + count)
            total[:, rows, self.column[line]] += part
            times[rows, self.column[line]] += 1
        return total / np.maximum(times, 1).astype(np.float32), times > 0


def of_heads(head: np.ndarray, grid: Grid, where: str) -> Lines:
    """Sorts and places the lines of a file on the grid.

    Args:
      head: the acquisitions' headers, a structured array.
      grid: encoded and reconstructed sizes.
      where: names the file.

    Raises:
      InputError: as `sort`, or a line lies outside the encoded matrix.
    """
    acquired = sort(head, where)
    kept = head[acquired.number]
    step = kept["idx"]["kspace_encode_step_1"]
    lines = Lines(
        **vars(acquired),
        column=grid.column_of(step.astype(int)),
        row=_rows(kept, grid.encoded[0], acquired.backwards),
    )
    _require_inside(lines, step, grid, where)
    return lines


def sort(head: np.ndarray, where: str) -> Acquired:
    """Sorts the lines of a file by what they are for.

    Args:
      head: the acquisitions' headers, a structured array.
      where: names the file.

    Raises:
      InputError: there is no image, coils differ, or there is a second phase encoding.
    """
    service = np.any([_has(head, flag) for flag in SERVICE], axis=0)
    noise = _has(head, NOISE)
    both = _has(head, CALIBRATION_AND_IMAGE)
    alone = _has(head, CALIBRATION) & ~both
    used = ~service & ~noise
    # Calibration of another encoding has another grid.
    used &= ~(alone & (head["encoding_space_ref"] != 0))
    imaging = used & ~alone
    if not imaging.any():
        raise InputError(
            f"{where}: none of its {len(head)} acquisitions is for an image. Convert "
            "the file again with its image lines."
        )
    number = np.flatnonzero(used)
    _require_alike(head, number, np.flatnonzero(noise), where)
    kept = head[number]
    counters = np.stack([kept["idx"][name] for name in _COUNTERS], axis=-1)
    _, series = np.unique(counters, axis=0, return_inverse=True)
    rank = _ranks(kept)
    key = np.stack([series.ravel(), rank], axis=-1)
    image = np.full(len(number), -1)
    on = imaging[number]
    image[on] = np.unique(key[on], axis=0, return_inverse=True)[1].ravel()
    length = kept["number_of_samples"].astype(int)
    start, end = kept["discard_pre"].astype(int), kept["discard_post"].astype(int)
    return Acquired(
        number=number,
        image=image,
        series=series.ravel(),
        rank=rank,
        calibration=(_has(kept, CALIBRATION) | both[number]),
        start=start,
        count=length - start - end,
        backwards=_has(kept, REVERSED),
        length=length,
        flags=_met(head),
    )


def whitening_of(
    data: h5py.Dataset, head: np.ndarray, lines: Acquired, coils: int, where: str
) -> np.ndarray | None:
    """Returns `whitening` by the noise scan; None if there is none.

    Raises:
      InputError: the noise scan does not suit the images.
    """
    noise = noise_of(head, lines, where)
    if not noise.size:
        return None
    return whitening(data.fields("data")[noise], coils, where)


def noise_of(head: np.ndarray, lines: Acquired, where: str) -> np.ndarray:
    """Returns the places of the noise scan's lines; none if there is no such scan.

    Raises:
      InputError: the noise was measured with another bandwidth than the images.
    """
    noise = np.flatnonzero(_has(head, NOISE))
    images = lines.number[lines.image >= 0]
    dwell = [np.unique(head["sample_time_us"][part]) for part in (noise, images)]
    if noise.size and all((times > 0).all() for times in dwell):
        lowest, highest = min(map(np.min, dwell)), max(map(np.max, dwell))
        if highest > 1.001 * lowest:
            raise InputError(
                f"{where}: its noise scan has samples of {dwell[0][0]:g} us, and its "
                f"images of {dwell[1][0]:g} us, so their bandwidths differ. Convert "
                "the file without the noise scan, or with one of the same bandwidth."
            )
    return noise


def read(path: Path, field: str, numbers: np.ndarray) -> np.ndarray:
    """Reads the "data" or "traj" of some lines of a file, in one thread at a time.

    Returns:
      (N,) arrays of float32, one for each line.
    """
    with _ALONE, open_file(path) as file:
        return file["dataset/data"].fields(field)[numbers]


def whitening(values: np.ndarray, coils: int, where: str) -> np.ndarray:
    """Returns the matrix (C, C) after which noise is white, with variance one.

    Args:
      values: samples of the noise scan's lines.
      coils: number of coils.
      where: names the file.

    Raises:
      InputError: the noise has no covariance that can be inverted.
    """
    noise = np.concatenate([_complex(line, coils) for line in values], axis=-1)
    noise = noise.astype(np.complex128)
    covariance = noise @ noise.conj().T / max(1, noise.shape[-1])
    try:
        if noise.shape[-1] < 2 * coils or not np.isfinite(covariance).all():
            raise np.linalg.LinAlgError("too few samples, or not finite")
        inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"{where}: its noise scan does not tell the noise of {coils} coils "
            f"({error}). Convert the file without the noise scan."
        ) from error
    return inverse.astype(np.complex64)


def _complex(samples: np.ndarray, coils: int) -> np.ndarray:
    return np.ascontiguousarray(samples, "<f4").view("<c8").reshape(coils, -1)


def _has(head: np.ndarray, flag: int) -> np.ndarray:
    return (head["flags"] >> np.uint64(flag - 1)) & np.uint64(1) > 0


def _met(head: np.ndarray) -> dict[str, int]:
    names = {
        NOISE: "noise",
        CALIBRATION: "calibration alone",
        CALIBRATION_AND_IMAGE: "calibration and image",
        REVERSED: "reversed",
        **SERVICE,
    }
    counts = {name: int(_has(head, flag).sum()) for flag, name in names.items()}
    return {name: count for name, count in counts.items() if count}


def _ranks(head: np.ndarray) -> np.ndarray:
    """Numbers slices along their direction; by their index if positions are silent."""
    slices, first, inverse = np.unique(
        head["idx"]["slice"], return_index=True, return_inverse=True
    )
    along = head["position"][first] @ head["slice_dir"][first[0]]
    ranks = np.empty(len(slices), int)
    ranks[np.lexsort((slices, np.nan_to_num(along)))] = np.arange(len(slices))
    return ranks[inverse.ravel()]


def _rows(head: np.ndarray, encoded: int, backwards: np.ndarray) -> np.ndarray:
    """First encoded row of each line, so that its centre is that of k-space."""
    start, end = head["discard_pre"].astype(int), head["discard_post"].astype(int)
    length, centre = (
        head[name].astype(int) for name in ("number_of_samples", "center_sample")
    )
    forwards = encoded // 2 - centre + start
    back = encoded // 2 - (length - 1 - centre) + end
    # Mirrored about its centre, a line of even length sticks out by one sample; many
    # headers then keep the centre of lines that run forwards.
    count = length - start - end
    back = np.where(back + count == encoded + 1, encoded - count, back)
    return np.where(backwards, back, forwards)


def _require_alike(
    head: np.ndarray, lines: np.ndarray, noise: np.ndarray, where: str
) -> None:
    coils = np.unique(head["active_channels"][np.concatenate([lines, noise])])
    if len(coils) > 1 or coils[0] == 0:
        raise InputError(
            f"{where}: its acquisitions have {' and '.join(map(str, coils))} channels. "
            "Convert the file again with the same coils throughout."
        )
    if len(np.unique(head["encoding_space_ref"][lines])) > 1:
        raise InputError(
            f"{where}: its images are of several encodings. Write each to a file."
        )
    second = head["idx"]["kspace_encode_step_2"][lines]
    if len(np.unique(second)) > 1:
        raise InputError(
            f"{where}: has a second phase encoding ({second.min()} to {second.max()}), "
            "so it is a 3D scan, but only 2D ones are read. Transform it along the "
            "third axis and write each slice as a scan."
        )


def _require_inside(lines: Lines, step: np.ndarray, grid: Grid, where: str) -> None:
    rows, columns = grid.encoded
    outside = (lines.column < 0) | (lines.column >= columns)
    if outside.any():
        first = np.flatnonzero(outside)[0]
        raise InputError(
            f"{where}: acquisition {lines.number[first]} has phase encoding step "
            f"{step[first]}, outside the encoded matrix of {columns} columns. Copy or "
            "convert the file again."
        )
    last = lines.row + lines.count
    outside = (lines.row < 0) | (last > rows) | (lines.count < 1)
    if outside.any():
        first = np.flatnonzero(outside)[0]
        raise InputError(
            f"{where}: acquisition {lines.number[first]} would fill rows "
            f"{lines.row[first]} to {last[first] - 1} of k-space, but its encoded "
            f"matrix has {rows}. Copy or convert the file again."
        )
