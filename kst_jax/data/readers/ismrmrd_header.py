"""Reads the sizes of a scan from the ISMRMRD header in fastMRI's files."""

import re
from typing import Any
from xml.etree import ElementTree

from kst_jax.data.samples import Geometry
from kst_jax.errors import InputError

_MAX_BYTES = 2**20
_SPACE = "{*}encoding/{*}reconSpace"
_LIMITS = "{*}encoding/{*}encodingLimits/{*}kspace_encoding_step_1/{*}"


def geometry_of(header: bytes | str, where: str) -> Geometry:
    """Reads the reconstructed matrix, its voxel size and the measured columns.

    The matrix is in `encoding/reconSpace`. The columns follow from the limits of the
    phase encoding, as in fastMRI; headers may lack these.

    Args:
      header: XML, the dataset `ismrmrd_header`.
      where: names the file.

    Raises:
      InputError: not an ISMRMRD header, or sizes that no image can have.
    """
    text = header if isinstance(header, bytes) else header.encode()
    try:
        root = ElementTree.fromstring(plain_xml(text))
        space = root.find(_SPACE)
        if space is None:
            raise ValueError("no encoding/reconSpace")
        # x is the readout: the rows of k-space in fastMRI's files.
        rows, columns = (int(_value(space, "matrixSize", axis)) for axis in "xy")
        extent = [float(_value(space, "fieldOfView_mm", axis)) for axis in "xyz"]
        depth = max(1, int(_value(space, "matrixSize", "z")))
        if not (0 < rows <= 2**14 and 0 < columns <= 2**14 and min(extent) > 0):
            raise ValueError(f"a matrix of {rows} x {columns} over {extent} mm")
        measured = _measured_columns(root)
    except (ElementTree.ParseError, ValueError, UnicodeError) as error:
        cause = " ".join(str(error).split())
        raise InputError(
            f"{where}: 'ismrmrd_header' does not tell the size of the image ({cause}). "
            "Copy the file again, or remove the header to keep the size of k-space."
        ) from error
    voxel = extent[0] / rows, extent[1] / columns, extent[2] / depth
    return Geometry((rows, columns), voxel, measured)


def plain_xml(text: bytes) -> bytes:
    """Returns XML that is safe to parse; raises ValueError for any other."""
    # Declarations could make a short text expand endlessly.
    if len(text) > _MAX_BYTES or re.search(rb"<!(DOCTYPE|ENTITY)", text):
        raise ValueError("too long, or with declarations")
    return text


def text_of(header: Any, part: str, name: str) -> str:
    """Returns a text in a part of a parsed header; empty if there is none."""
    value = getattr(getattr(header, part), name, None)
    return str(value).strip() if value else ""


def _measured_columns(root: ElementTree.Element) -> tuple[int, int] | None:
    encoded = root.findtext("{*}encoding/{*}encodedSpace/{*}matrixSize/{*}y")
    centre, last = (root.findtext(_LIMITS + name) for name in ("center", "maximum"))
    if encoded is None or centre is None or last is None:
        return None
    first = int(encoded) // 2 - int(centre)
    stop = first + int(last) + 1
    if not 0 <= first < stop:
        raise ValueError(f"measured columns from {first} to {stop}")
    return first, stop


def _value(space: ElementTree.Element, group: str, axis: str) -> str:
    found = space.findtext(f"{{*}}{group}/{{*}}{axis}")
    if found is None:
        raise ValueError(f"no {group}/{axis}")
    return found
