"""kst-reconstruct: the scans and options that it refuses."""

import numpy as np
import pytest

from kst_jax.models.kst import KSpaceTransformer
from kst_jax.runs import fields_of_view
from kst_jax.runs.checkpoints import write_parameters
from tests import fastmri_files
from tests.programs import refused
from tests.references import make_kst_tiny
from tests.test_reconstruct import COLUMNS, HEADER, PROGRAM, config_of, kspace_of, write


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a network that is never applied."""
    folder, config = tmp_path_factory.mktemp("runs") / "run", config_of()
    model, example = KSpaceTransformer(config.model), make_kst_tiny.example()
    write_parameters(folder, make_kst_tiny.weights(model, example), config)
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans") / "file1.h5"
    return write(path, kspace_of() * COLUMNS, COLUMNS)


def test_measured_columns_that_hold_zeros_are_refused(run, tmp_path):
    kspace = fastmri_files.measured(np.ones((1, 16, 12)), 16, (2, 15))
    kspace[..., 4] = 0
    path = fastmri_files.write(tmp_path / "a.h5", kspace, (16, 16), (2, 15), COLUMNS)
    message = refused(PROGRAM, run, path, tmp_path / "out")
    assert "a.h5: slice 0: the mask calls column 4 sampled" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mask", "change", "message"),
    [
        (np.ones(15, bool), None, r"a mask of shape (15,) does not fit k-space of 16"),
        (np.zeros(16, bool), None, "the mask samples nothing"),
        (COLUMNS * 3, None, "values other than 0 and 1"),
        (~COLUMNS, None, "not zero at 160 points that the mask calls unsampled"),
        (np.ones(16, bool), None, "the mask calls column 0 sampled (6 such columns)"),
        (COLUMNS, lambda k: k * 0, "its k-space is all zero"),
        (COLUMNS, lambda k: k * np.nan, "values that are not finite"),
        (None, lambda k: kspace_of(), "fully sampled; nothing to reconstruct"),
    ],
)
def test_what_cannot_be_used_is_refused(run, mask, change, message, tmp_path):
    kspace = kspace_of() * COLUMNS
    scan = write(tmp_path / "scan.h5", change(kspace) if change else kspace, mask)
    error = refused(PROGRAM, run, scan, tmp_path / "out")
    assert message in error
    assert "scan.h5" in error
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit_are_refused(run, scan, tmp_path):
    out = tmp_path / "out"
    given = (PROGRAM, run, scan, out)
    assert "leave out --acceleration" in refused(*given, "--acceleration=2")
    assert "must be above 1" in refused(*given, "--acceleration=0.5")
    assert "a picture has no phase" in refused(*given, "--format=png", "--complex")
    assert "invalid choice" in refused(*given, "--format=dicom")
    odd = write(tmp_path / "odd.h5", kspace_of((1, 16, 15)), np.arange(15) > 99)
    assert "samples nothing" in refused(PROGRAM, run, odd, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("no XML", "does not tell the size"),
        ("<ismrmrdHeader/>", "no encoding/reconSpace"),
        (HEADER.replace("<y>12</y>", ""), "no matrixSize/y"),
        (HEADER.replace("<x>16</x>", "<x>-16</x>"), "a matrix of -16 x 12"),
        (f"<!DOCTYPE a [<!ENTITY b 'c'>]>{HEADER[21:]}", "with declarations"),
    ],
)
def test_headers_that_are_none_are_refused(run, header, message, tmp_path):
    scan = write(tmp_path / "scan.h5", kspace_of() * COLUMNS, COLUMNS, header)
    assert message in refused(PROGRAM, run, scan, tmp_path / "out")


def test_several_coils_are_refused(run, tmp_path):
    path = write(tmp_path / "brain.h5", kspace_of((2, 3, 16, 16)) * COLUMNS, COLUMNS)
    message = refused(PROGRAM, run, path, tmp_path / "out")
    assert "brain.h5: holds k-space of 3 coils" in message
    assert not (tmp_path / "out").exists()


def test_a_damaged_list_of_fields_of_view_is_refused(run, scan, tmp_path):
    path = run / fields_of_view.NAME
    path.write_text("[3]")
    try:
        message = refused(PROGRAM, run, scan, tmp_path / "out")
    finally:
        path.unlink()
    assert "fields_of_view.json: is not a list of heights and widths" in message
