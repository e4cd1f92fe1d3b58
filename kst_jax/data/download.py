"""Downloads the four public scans of `configs/studies/small.py` (132 MB).

    kst-download .

writes them to the current folder, under the names that the study uses. It keeps scans
that are already there.

* colin27_t1w: `ch2.nii.gz` from Debian's package mricron-data (BSD-3);
* s1_t1w: the T1w volume of subject S1 in PyPI's source distribution of pycortex (BSD);
* aomic_sub-0017_t1w, aomic_sub-0042_t1w: two people of AOMIC-PIOP1 (OpenNeuro
  ds002785, CC0), from reports in PyPI's source distribution of mriqc, which picture
  every slice: 8 bits, windowed for display and cropped to the brain.
"""

import base64
import functools
import gzip
import hashlib
import http.client
import io
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

import matplotlib.image
import nibabel
import numpy as np
from tqdm import tqdm

from kst_jax.errors import InputError
from kst_jax.programs import cli, files
from kst_jax.programs.arguments import Parser


class Package(NamedTuple):
    """A published archive and its SHA-256."""

    url: str
    sha256: str


_PYPI = "https://files.pythonhosted.org/packages"
_MRICRON = Package(
    "https://deb.debian.org/debian/pool/main/m/mricron/"
    "mricron-data_1.2.20211006%2bdfsg-4_all.deb",
    "d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
)
_PYCORTEX = Package(
    f"{_PYPI}/5d/1a/8f4fb7674ea9f29780f991677ee7282758dacbacbdb5029eeb001fb7fb78/"
    "pycortex-1.4.0.tar.gz",
    "9fdb292a2df96bba6087ee07d428969ba1eb07ed03724bcfaca96ec8e28a5fd5",
)
_MRIQC = Package(
    f"{_PYPI}/dc/6b/c9f999145175c1f3cc245311747a3817fb31f0d2b75dd1749bbb677f75df/"
    "mriqc-24.0.2.tar.gz",
    "1f864dbfd74ecc8d1b185fe7db8afb0a5d4d9a107fbc91df66eeff30ef7ec7ed",
)
_REPORT = (
    "mriqc-24.0.2/mriqc/data/tests/ds002785/{0}/figures/{0}_desc-zoomed_T1w.svg"
).format
# Maps a scan's name to its package and the file in it.
SCANS = {
    "colin27_t1w": (_MRICRON, "./usr/share/mricron/templates/ch2.nii.gz"),
    "s1_t1w": (_PYCORTEX, "pycortex-1.4.0/filestore/db/S1/anatomicals/raw.nii.gz"),
    "aomic_sub-0017_t1w": (_MRIQC, _REPORT("sub-0017")),
    "aomic_sub-0042_t1w": (_MRIQC, _REPORT("sub-0042")),
}
_AXIAL = 128  # slices that a report shows first; other planes follow


def download(folder: str | Path) -> list[Path]:
    """Downloads the scans that a folder lacks.

    Returns:
      The four files.

    Raises:
      InputError: a package cannot be downloaded or its checksum differs, or the folder
        cannot be written to.
    """
    folder = Path(folder)
    files.make_folder(folder)
    get = functools.lru_cache(maxsize=1)(_get)  # two scans come from one package
    for name, (package, member) in SCANS.items():
        path = _path(folder, name)
        if path.exists():
            continue
        content = _member(get(package), member)
        if member.endswith(".svg"):
            content = _volume(content)
        with files.whole(path) as partial:
            partial.write_bytes(content)
    return [_path(folder, name) for name in SCANS]


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.nii.gz"


def _get(package: Package) -> bytes:
    name = package.url.rpartition("/")[2]
    content = bytearray()
    try:
        with (
            urllib.request.urlopen(package.url, timeout=60) as source,
            tqdm(
                desc=name,
                total=int(source.headers["Content-Length"] or 0) or None,
                unit="B",
                unit_scale=True,
            ) as bar,
        ):
            while part := source.read(2**16):
                content += part
                bar.update(len(part))
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{package.url}: cannot be downloaded ({error}). Try again later; if it "
            "is gone, find the same file elsewhere and put the scan into the folder."
        ) from error
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise InputError(
            f"{package.url}: is not the expected file, or arrived damaged (its SHA-256 "
            f"should be {package.sha256}). Try again."
        )
    return bytes(content)


def _member(package: bytes, member: str) -> bytes:
    """Returns a file of an archive whose checksum is right."""
    if package.startswith(b"!<arch>\n"):
        package = _debian_files(package)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        file = archive.extractfile(member)
        assert file  # the archive is a known one
        return file.read()


def _debian_files(package: bytes) -> bytes:
    """Returns the archive in a Debian package: entries follow headers of 60 bytes."""
    at = 8
    while not package.startswith(b"data.tar", at):
        size = int(package[at + 48 : at + 58])
        at += 60 + size + size % 2
    return package[at + 60 :]


def _volume(report: bytes) -> bytes:
    """Makes a NIfTI volume from the axial slices of a report; columns are +x."""
    pictures = re.findall(rb'href="data:image/png;base64,([^"]+)"', report)
    slices = [
        matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))[..., 0]
        for picture in pictures[:_AXIAL]
    ]
    # Rows of a picture run along +y from the top: pictures are upside down.
    voxels_XxYxZ = np.rint(255 * np.stack(slices)).astype(np.uint8).transpose(2, 1, 0)
    image = nibabel.Nifti1Image(voxels_XxYxZ, np.eye(4))
    with io.BytesIO() as stream:
        image.to_stream(stream)
        return gzip.compress(stream.getvalue(), mtime=0)


def _main() -> None:
    """Command line: downloads the scans."""
    parser = Parser("kst-download", __doc__)
    parser.add_argument("folder", nargs="?", default=".", help="folder to write (.)")
    for path in download(parser.parse_args().folder):
        print(path)


def main() -> None:
    """Command line."""
    cli.run(_main)


if __name__ == "__main__":
    main()
