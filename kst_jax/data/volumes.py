"""One scan: how it is opened, what it is called, which of its slices are selected."""

import argparse
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from kst_jax.data import contents, samples
from kst_jax.data.off_grid import OffGridVolume, TrajectoryOptions
from kst_jax.data.readers import bart, bart_trajectories, fastmri, mrd, nifti, npy
from kst_jax.data.readers.nifti import beside
from kst_jax.data.samples import Geometry, Sample
from kst_jax.data_config import Selection
from kst_jax.errors import InputError
from kst_jax.programs import files


class Volume(Protocol):
    """A scan as its reader gives it: metadata at once, slices on demand."""

    @property
    def path(self) -> Path:
        """The scan's file."""

    @property
    def patient(self) -> str:
        """Who the file says was scanned; empty if it does not say."""

    @property
    def measured(self) -> bool:
        """Whether the k-space is known to be measured."""

    @property
    def depth(self) -> int:
        """Number of slices, including empty ones."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the k-space."""

    @property
    def coils(self) -> int:
        """Number of receiver coils."""

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the images that the scanner shows."""

    @property
    def geometry(self) -> Geometry | None:
        """The grid of the header; None if the file has no header of k-space."""

    @property
    def pixel(self) -> tuple[float, float] | None:
        """Height and width of a pixel in mm; None if the file does not tell."""

    @property
    def acquisition(self) -> str:
        """How the scan was made, as fastMRI names it; empty if the file is silent."""

    @property
    def slices(self) -> Sequence[int]:
        """Numbers below `depth` of the slices that are not empty."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is probably wrong with a scan that can be read all the same."""

    @property
    def undersampled(self) -> bool:
        """Whether the file tells that its k-space is not complete."""

    def sampled(self, index: int) -> np.ndarray | None:
        """Points (H, W) that the file says were measured; None if it does not say."""

    def read(self, index: int) -> np.ndarray:
        """Reads one slice as a complex64 image (H, W), or one for each coil."""

    def sample(self, index: int) -> Sample:
        """One slice as it was measured."""


AnyVolume = Volume | OffGridVolume
Opener = Callable[[Path, Selection, TrajectoryOptions], AnyVolume]


def _open_hdf5(path: Path, _: Selection, options: TrajectoryOptions) -> AnyVolume:
    if mrd.is_mrd(path):
        return mrd.open_volume(path, options.units)
    return fastmri.open_volume(path)


def _open_cfl(path: Path, _: Selection, options: TrajectoryOptions) -> AnyVolume:
    if options.path is not None:
        return bart_trajectories.open_volume(path, options)
    return bart.open_volume(path)


def _open_nifti(path: Path, selection: Selection, _: TrajectoryOptions) -> AnyVolume:
    return nifti.open_volume(path, selection.plane, selection.min_foreground)


# Each suffix's reader.
READERS: dict[str, Opener] = {
    ".h5": _open_hdf5,
    ".mrd": lambda path, _, options: mrd.open_volume(path, options.units),
    ".cfl": _open_cfl,  # with its .hdr
    ".npy": lambda path, *_: npy.open_volume(path),
    ".nii": _open_nifti,
    ".nii.gz": _open_nifti,
    ".hdr": _open_nifti,  # with its .img; BART's are found by their .cfl
}

# Of a pair, the other file's suffix.
_PAIRED = {".hdr": ".img", ".cfl": ".hdr"}


def selected(volume: Volume, selection: Selection, file: str) -> list[int]:
    """Returns the numbers of the selected slices.

    Args:
      volume: the scan.
      selection: which of its slices to use.
      file: the file's name, which seeds the draw of slices.

    Raises:
      InputError: no slice is left.
    """
    first = max(round(selection.slices[0] * volume.depth), selection.drop_first)
    stop = round(selection.slices[1] * volume.depth)
    kept = [index for index in volume.slices if first <= index < stop]
    if not kept:
        raise InputError(
            f"{volume.path}: none of its {volume.depth} slices is left after "
            f"drop_first {selection.drop_first} and slices {selection.slices}. Choose "
            "a wider range, or leave out the file."
        )
    count = max(1, round(selection.fraction * len(kept)))
    return sorted(shuffled(kept, f"{selection.seed}:{name_of(Path(file))}")[:count])


def open_volume(path: Path, selection: Selection, undersampled: bool = False) -> Volume:
    """Opens a scan to train on or to test on.

    Args:
      path: its file.
      selection: which of its slices to use.
      undersampled: whether its k-space may be undersampled.

    Raises:
      InputError: the file cannot be used, or its k-space is undersampled or off the
        grid.
    """
    volume = open_scan(path, selection)
    if isinstance(volume, OffGridVolume):
        raise InputError(
            f"{path}: was measured off the grid, so there is no fully sampled image "
            "to train on or to compare with. Reconstruct it with kst-reconstruct. To "
            "train a network for such scans, use fully sampled ones and "
            "--config.mask.kind=radial, or another trajectory."
        )
    if volume.undersampled and not undersampled:
        raise InputError(
            f"{path}: holds a 'mask' or lacks lines, so its k-space is undersampled "
            "and there is nothing to compare with. Reconstruct it with "
            "kst-reconstruct; test on fully sampled files (fastMRI's train and val). "
            "To train on it without ground truth, set --config.mask.kind=measured, "
            "--config.train.supervision=self and --config.data.native=True."
        )
    return volume


def doubt_of_zeros(volume: Volume, index: int) -> str | None:
    """Tells that a scan opened as a fully sampled one seems to be undersampled.

    It reads one slice. What cannot be read raises nothing here, but where it is used.

    Args:
      volume: the scan.
      index: number of the slice.

    Returns:
      What is probably wrong, as in `Volume.doubts`; None if nothing is.
    """
    with contextlib.suppress(InputError), reading(volume.path):
        count = int(samples.left_out(volume.sample(index)).sum())
        if count:
            return (
                f"has columns of zeros among measured ones ({count} in slice {index}), "
                "so it is probably undersampled. It counts as fully sampled: networks "
                "learn its zero-filled images, and scores compare with them. "
                "Reconstruct it with kst-reconstruct, train on it without ground truth "
                "(--config.mask.kind=measured, --config.train.supervision=self, "
                "--config.data.native=True), or leave it out."
            )
    return None


def require_coils(volume: Volume, count: int) -> None:
    """Raises InputError if a scan of several coils does not suit `data.coils.count`."""
    if volume.coils > 1 and count == 1:
        raise InputError(
            f"{volume.path}: holds k-space of {volume.coils} coils. Set "
            "--config.data.coils.count to the virtual coils that the network should "
            f"see, at most {volume.coils}; or reconstruct it with CG-SENSE "
            "(kst-reconstruct sense)."
        )
    if 1 < volume.coils < count:
        raise InputError(
            f"{volume.path}: holds k-space of {volume.coils} coils, fewer than "
            f"--config.data.coils.count={count}. Lower it, or leave the file out."
        )


def open_scan(
    path: Path,
    selection: Selection,
    options: TrajectoryOptions = TrajectoryOptions(),  # noqa: B008 (immutable)
) -> AnyVolume:
    """Opens a scan, undersampled or not; raises InputError if it cannot be used."""
    require_file(path)
    suffix = suffix_of(path)
    if options.path is not None and suffix != ".cfl":
        raise InputError(
            f"{path}: --trajectory={options.path} is for BART's .cfl; ISMRMRD files "
            "hold their trajectory. Leave it out."
        )
    try:
        with reading(path):
            return READERS[suffix](path, selection, options)
    except InputError:
        contents.require_content(path, suffix)  # where this is the cause
        raise


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the fields of `Selection` to a command line as options."""
    add, default = parser.add_argument, Selection()
    add(
        "--plane",
        default=default.plane,
        help=f"plane of NIfTI and Analyze slices: axial, coronal or sagittal "
        f"({default.plane})",
    )
    add(
        "--slices",
        type=float,
        nargs=2,
        default=default.slices,
        metavar=("START", "STOP"),
        help="part of each volume to use, as shares of its slices (0 1)",
    )
    add(
        "--drop_first",
        type=int,
        default=default.drop_first,
        help="slices to leave out at the start of each volume (0)",
    )
    add(
        "--fraction",
        type=float,
        default=default.fraction,
        help="fraction of each volume's slices to draw (1)",
    )
    add("--seed", type=int, default=default.seed, help="seed of that draw (0)")
    add(
        "--min_foreground",
        type=float,
        default=default.min_foreground,
        help="share of bright pixels below which slices of NIfTI and Analyze volumes "
        f"are left out as empty ({default.min_foreground})",
    )
    add(
        "--subjects",
        default=default.subjects,
        help="regular expression whose only group is the person's label, searched in "
        "each scan's path, as data.subjects: '(IXI[0-9]+)'",
    )


def selection_of(args: argparse.Namespace) -> Selection:
    """Returns the selection on a command line; raises InputError if out of range."""
    names = [field.name for field in dataclasses.fields(Selection)]
    options = {name: getattr(args, name) for name in names}
    return Selection(**options | {"slices": tuple(args.slices)})


def require_file(path: Path) -> None:
    """Raises InputError if a path with the name of a scan is not a file.

    It may be a link to a file that was not fetched (datalad and git-annex leave such
    links), a folder, a pipe, which would be read for ever, or a header that is missing
    beside its .img.
    """
    files.require_ordinary(path)
    if path.exists():
        return
    what, remedy = "is missing, though its .img is there", "Copy both files"
    if path.is_symlink():
        what, remedy = "is a link that leads nowhere", "Fetch the file it stands for"
        if ".git/annex/objects" in path.readlink().as_posix():
            remedy = contents.GET_ANNEXED.removesuffix(".")
    raise InputError(f"{path}: {what}. {remedy}, or leave it out by a pattern.")


def suffix_of(path: Path) -> str:
    """Returns the suffix in `READERS` that a file's name ends with, or ""."""
    name = path.name.lower()
    return next((s for s in READERS if name.endswith(s)), "")


def fingerprint(path: Path) -> dict[str, int | str]:
    """Tells a scan from others of its name, as `files.fingerprint` does."""
    other = _PAIRED.get(suffix_of(path))
    with reading(path):
        return files.fingerprint([path, beside(path, other)] if other else [path])


def name_of(path: Path) -> str:
    """Returns the name of a scan: its file's name without the suffix."""
    return path.name[: -len(suffix_of(path))]


def shuffled(items: Collection, salt: str) -> list:
    """Shuffles by the salt and the items' text, the same way in every version."""

    def digest(item: object) -> bytes:
        return hashlib.sha256(files.encoded(f"{salt}:{item}")).digest()

    return sorted(items, key=digest)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any failure of a library to read `path` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise all kinds of exceptions
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{path}: cannot be read ({cause}). Check that the file is complete and "
            "readable; copy or download it again."
        ) from error
