"""ISMRMRD (MRD) raw data: 2D scans as scanners' converters write them."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from kst_jax.data.fourier import ifft2c
from kst_jax.data.off_grid import OffGridVolume
from kst_jax.data.readers import mrd_lines, mrd_trajectories
from kst_jax.data.readers.fastmri import (
    MAX_POINTS,
    open_file,
    require_transformable,
)
from kst_jax.data.readers.ismrmrd_header import plain_xml, text_of
from kst_jax.data.readers.mrd_geometry import geometry_of
from kst_jax.data.readers.mrd_grid import Grid
from kst_jax.data.readers.mrd_lines import Lines
from kst_jax.data.samples import Geometry, Sample, crop_readout
from kst_jax.errors import InputError

_GROUP = "dataset"
_MAX_LINES = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class MRDVolume:
    """One raw file; every slice of every contrast and repetition is an image.

    Attributes:
      path: the file. It is opened again for every image, so that the volume can be
        pickled and read in several processes.
      patient: who was scanned; empty if the header does not say.
      acquisition: the protocol's name; empty if the header does not say.
      coils: number of receiver coils.
      grid: encoded and reconstructed sizes.
      lines: the lines of images and of calibration, with their places.
      whitening: (C, C) matrix that makes the coils' noise white; None without a noise
        scan.
      geometry: the grid of the reconstructed images, and their place in the patient.
      doubts: what is probably wrong.
    """

    path: Path
    patient: str
    acquisition: str
    coils: int
    grid: Grid
    lines: Lines
    whitening: np.ndarray | None
    geometry: Geometry
    doubts: tuple[str, ...]
    measured: ClassVar[bool] = True

    @property
    def depth(self) -> int:
        """Number of images."""
        return self.lines.images

    @property
    def slices(self) -> range:
        """Numbers of the images that can be read."""
        return range(self.depth)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the k-space, without the readout's oversampling."""
        return self.grid.shape

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the images that the scanner shows."""
        return self.geometry.matrix

    @property
    def pixel(self) -> tuple[float, float]:
        """Height and width of a pixel in mm."""
        return self.geometry.voxel[:2]

    @property
    def undersampled(self) -> bool:
        """Whether some image lacks lines or parts of them."""
        return not all(
            self.lines.sampled(index, self.grid.encoded).all() for index in self.slices
        )

    def sampled(self, index: int) -> np.ndarray:
        """Points (H, W) of an image that were measured."""
        return self._on_grid(self.lines.sampled(index, self.grid.encoded))

    def described(self) -> list[str]:
        """Says how the scan was made, a sentence each."""
        encoded, lines = self.grid.encoded, self.lines
        sampled = lines.sampled(0, encoded)
        calibration = len(set(lines.column[lines.calibration].tolist()))
        noise = (
            "a noise scan makes them white"
            if lines.flags.get("noise")
            else ("no noise scan")
        )
        kinds = ", ".join(f"{count} {name}" for name, count in lines.flags.items())
        return [
            f"{self.coils} coils; {noise}.",
            f"the readout is oversampled {self.grid.oversampling:g} times.",
            f"{sampled.size / sampled.sum():.3g} times undersampled; {calibration} "
            "columns for calibration.",
            f"acquisitions with flags: {kinds or 'none'}.",
        ]

    def read(self, index: int) -> np.ndarray:
        """Reads one slice as a complex64 image (H, W), or one for each coil."""
        return ifft2c(self.sample(index).kspace)

    def sample(self, index: int) -> Sample:
        """Reads one image's k-space, with its mask and its calibration lines.

        Raises:
          InputError: values are not finite, or a line is shorter than its header says.
        """
        where = f"{self.path}: slice {index}"
        kspace, mask = self._placed(self.lines.of_image(index), where)
        calibration, numbers = None, self.lines.calibration_of(index)
        if numbers.size:
            calibration, _ = self._placed(numbers, where)
        return Sample(
            kspace=kspace,
            mask=mask,
            where=where,
            geometry=self.geometry,
            calibration=calibration,
        )

    def _on_grid(self, sampled: np.ndarray) -> np.ndarray:
        """Returns the mask (H, W) of encoded points on the images' grid."""
        return self.grid.resized(sampled[self.grid.readout_places()], fill=None)

    def _placed(self, numbers: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k-space of some lines and its mask, on the images' grid."""
        values = mrd_lines.read(self.path, "data", numbers)
        kspace, sampled = self.lines.place(
            numbers, values, self.coils, self.grid.encoded, where
        )
        require_transformable(kspace, where)
        if self.whitening is not None:
            kspace = np.einsum("cd,dhw->chw", self.whitening, kspace)
        kspace = crop_readout(kspace.astype(np.complex64), self.grid.rows)
        mask = self._on_grid(sampled)
        kspace = np.where(mask, self.grid.resized(kspace, fill=0), 0)
        kspace = kspace.astype(np.complex64)
        whole = (mask == mask[:1]).all()
        return kspace if self.coils > 1 else kspace[0], mask[0] if whole else mask


def is_mrd(path: Path) -> bool:
    """Whether an HDF5 file has ISMRMRD's layout; False for a damaged file."""
    try:
        with open_file(path) as file:
            group = _own(file, _GROUP, h5py.Group)
            return group is not None and {"xml", "data"} <= set(group)
    except (OSError, RuntimeError):  # the reader of fastMRI's files says more
        return False


def open_volume(path: Path, units: str = "") -> MRDVolume | OffGridVolume:
    """Reads header and places of all lines.

    Flags decide what a line is for: navigators, phase correction and other service
    lines are passed over, and noise scans make the coils' noise white.

    Args:
      path: the file.
      units: of trajectories; see `off_grid.TrajectoryOptions`.

    Raises:
      InputError: the file cannot be used.
    """
    if not h5py.is_hdf5(path):
        raise InputError(
            f"{path}: is not an HDF5 file, though its name says so. Copy or download "
            "it again."
        )
    with open_file(path) as file:
        group = _own(file, _GROUP, h5py.Group)
        data = _own(group, "data", h5py.Dataset)
        xml = _own(group, "xml", h5py.Dataset)
        if data is None or xml is None:
            raise InputError(
                f"{path}: has no '{_GROUP}/data' and '{_GROUP}/xml' of its own. Write "
                "it as ISMRMRD does, or copy it again."
            )
        _require_lines(data, path)
        header = _header_of(xml, path)
        head = data.fields("head")[()]
        if not _cartesian(header, path):
            return mrd_trajectories.open_volume(data, head, header, units, path)
        grid = _grid_of(header, path)
        lines = mrd_lines.of_heads(head, grid, str(path))
        coils = int(head["active_channels"][lines.number[0]])
        if coils * np.prod(grid.encoded) > MAX_POINTS:
            raise InputError(
                f"{path}: {coils} coils of {grid.encoded[0]} x {grid.encoded[1]} "
                f"points are more than {MAX_POINTS}. The file is probably damaged."
            )
        whitening = mrd_lines.whitening_of(data, head, lines, coils, str(path))
    geometry, doubts = geometry_of(head, lines, grid)
    return MRDVolume(
        path=path,
        patient=text_of(header, "subjectInformation", "patientID"),
        acquisition=text_of(header, "measurementInformation", "protocolName"),
        coils=coils,
        grid=grid,
        lines=lines,
        whitening=whitening,
        geometry=geometry,
        doubts=doubts,
    )


def _own(group: h5py.Group | None, name: str, kind: type) -> Any:
    """Returns a member that lies in this file itself, or None."""
    if group is None or not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    member = group[name]
    if not isinstance(member, kind):
        return None
    if isinstance(member, h5py.Dataset) and (member.is_virtual or member.external):
        return None
    return member


def _require_lines(data: h5py.Dataset, path: Path) -> None:
    names = data.dtype.names or ()
    if data.ndim != 1 or not {"head", "data"} <= set(names) or not len(data):
        raise InputError(
            f"{path}: '{_GROUP}/data' of shape {data.shape} holds no acquisitions with "
            "head and data. Write it as ISMRMRD does."
        )
    stored = data.id.get_storage_size()
    if (
        len(data) > _MAX_LINES
        or data.id.get_create_plist().get_nfilters()
        or stored < len(data) * data.id.get_type().get_size()
    ):
        raise InputError(
            f"{path}: '{_GROUP}/data' claims {len(data)} acquisitions in {stored} "
            f"bytes; {_MAX_LINES} uncompressed ones are the most that is read. Copy "
            "the file again, or write it without compression."
        )


def _header_of(xml: h5py.Dataset, path: Path) -> Any:
    """Parses the XML header by the standard's schema."""
    from ismrmrd import xsd  # takes half a second

    try:
        if xml.size != 1:
            raise ValueError(f"{xml.size} headers")
        value = xml[()].item() if xml.shape == () else xml[0]
        text = value.encode() if isinstance(value, str) else bytes(value)
        return xsd.CreateFromDocument(plain_xml(text))
    except Exception as error:  # damaged XML fails in many ways inside xsdata
        cause = " ".join(str(error).split())
        raise InputError(
            f"{path}: '{_GROUP}/xml' is no ISMRMRD header ({cause}). Copy or convert "
            "the file again."
        ) from error


def _cartesian(header: Any, path: Path) -> bool:
    if not header.encoding:
        raise InputError(
            f"{path}: its header has no encoding. Copy or convert the file again."
        )
    trajectory = header.encoding[0].trajectory
    return str(getattr(trajectory, "value", trajectory)).lower() == "cartesian"


def _grid_of(header: Any, path: Path) -> Grid:
    encoding = header.encoding[0]
    limits = getattr(encoding.encodingLimits, "kspace_encoding_step_1", None)
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    extents = [
        (space.matrixSize.x, space.matrixSize.y, space.matrixSize.z)
        for space in (encoded, recon)
    ]
    fields = [
        (space.fieldOfView_mm.x, space.fieldOfView_mm.y, space.fieldOfView_mm.z)
        for space in (encoded, recon)
    ]
    try:
        return Grid.of(extents, fields, limits.center if limits else None)
    except ValueError as error:
        raise InputError(
            f"{path}: its header does not tell the size of the image ({error}). Copy "
            "or convert the file again."
        ) from error
