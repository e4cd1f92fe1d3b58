"""ISMRMRD files, and those like them, that are refused."""

import h5py
import numpy as np
import pytest

from kst_jax.data import finding
from kst_jax.errors import InputError
from tests import mrd_files
from tests.mrd_files import header, line, lines, write
from tests.test_mrd import KSPACE, opened


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_lines(*more, xml=None):
    def change(path):
        path.unlink()
        write(path, [*lines(KSPACE), *more], xml)

    return change


def with_xml(text):
    return with_lines(xml=text)


BAD = {
    "cannot be read": truncated,
    "trajectory is radial, but not all acquisitions": with_xml(
        header(trajectory="radial")
    ),
    "3 and 5 channels": with_lines(line(np.ones((5, 24)), 1)),
    "3 and 4 channels": with_lines(line(np.ones((4, 24)), 0, [19])),
    "step 10, outside the encoded matrix of 10": with_lines(line(KSPACE[..., 0], 10)),
    "rows -6 to 17 of k-space": with_lines(line(KSPACE[..., 0], 1, center_sample=18)),
    "samples of 10 us, and its images of 5 us": with_lines(
        line(np.ones((3, 24)), 0, [19], sample_time_us=10.0)
    ),
    "does not tell the noise of 3 coils": with_lines(line(np.ones((3, 24)), 0, [19])),
    "a second phase encoding .0 to 3.": with_lines(
        line(KSPACE[..., 0], 1, kspace_encode_step_2=3)
    ),
    "of several encodings": with_lines(line(KSPACE[..., 0], 1, encoding_space_ref=1)),
    "is no ISMRMRD header .*declarations": with_xml(
        '<!DOCTYPE a [<!ENTITY b "c">]>' + header()
    ),
    "is no ISMRMRD header": with_xml("<html>"),
    "an image of": with_xml(header(shown=(480, 100))),
    "fields of view": with_xml(header(field=(0, 100))),
    "matrices of": with_xml(header(encoded=(0, 10))),
}


@pytest.mark.parametrize("cause", BAD)
def test_bad_files_are_refused(tmp_path, cause):
    path = write(tmp_path / "bad.h5", lines(KSPACE))
    BAD[cause](path)
    with pytest.raises(InputError, match=f"bad.h5.*{cause}"):
        opened(path)


def test_a_scan_of_service_lines_alone_is_refused(tmp_path):
    path = write(tmp_path / "bad.mrd", lines(KSPACE, flags=[23]))
    with pytest.raises(InputError, match="none of its 10 acquisitions is for an image"):
        opened(path)


def test_a_line_shorter_than_its_header_is_refused(tmp_path):
    path = write(tmp_path / "bad.mrd", lines(KSPACE))
    with h5py.File(path, "a") as file:
        one = file["dataset/data"][3]
        one["data"] = one["data"][:-2]
        file["dataset/data"][3] = one
    with pytest.raises(InputError, match="slice 0: acquisition 3 holds 142 numbers"):
        opened(path).sample(0)


def test_values_that_are_not_finite_are_refused(tmp_path):
    broken = KSPACE.copy()
    broken[1, 2, 3] = np.nan
    volume = opened(mrd_files.write(tmp_path / "bad.mrd", lines(broken)))
    with pytest.raises(InputError, match="slice 0 holds values that are not finite"):
        volume.sample(0)


TWIX = {
    "VB": b"\0\1\0\0\6\0\0\0Config\0" + bytes(500),
    "VE": bytes(4) + b"\2" + bytes(11) + (10240).to_bytes(8, "little") + bytes(500),
}


@pytest.mark.parametrize("kind", TWIX)
def test_twix_is_refused_with_the_converter_named(tmp_path, kind):
    (tmp_path / "meas.dat").write_bytes(TWIX[kind])
    with pytest.raises(
        InputError, match=r"meas\.dat: .*Siemens twix.*siemens_to_ismrm"
    ):
        finding.find(str(tmp_path / "meas.dat"))
