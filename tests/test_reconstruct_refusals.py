"""kst-reconstruct: the scans and options that it refuses."""

import dataclasses

import numpy as np
import pytest

from kst_jax.data import volumes
from kst_jax.data_config import Selection
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.programs import files
from kst_jax.reconstruct import inputs, record
from kst_jax.reconstruct.inputs import Undersampling
from kst_jax.reconstruct.methods import open_method
from kst_jax.reconstruct.options import Options
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


def finished(folder, scan):
    """Leaves in a folder what a finished reconstruction of a scan leaves."""
    method, options = open_method("sense", "latest"), Options()
    about = {"file": "file1.h5", "scan": volumes.fingerprint(scan)}
    (folder / "file1.h5").touch()
    record.write(folder, record.origin_of(method, options), {"file1.h5": about})


def test_another_scan_of_the_same_name_is_refused(tmp_path):
    """Its image would be taken for the other's, or would replace it."""
    folders = [tmp_path / name for name in ("one", "other", "out")]
    for folder in folders:
        folder.mkdir()
    one, other, out = folders
    kspace = kspace_of((2, 3, 16, 16)) * COLUMNS
    finished(out, write(one / "file1.h5", kspace, COLUMNS))
    message = refused(
        PROGRAM, "sense", write(other / "file1.h5", 2 * kspace, COLUMNS), out
    )
    assert f"{out}/file1.h5: is the image of another file1.h5 than {other}" in message
    np.save(one / "file1.npy", kspace[:, 0])
    assert "is the image of another" in refused(
        PROGRAM, "sense", one / "file1.npy", out
    )


def test_images_of_other_parameters_are_refused(run, scan, tmp_path):
    """A run that was trained again has the same folder and step."""
    method = open_method(run, "latest")
    origin = record.origin_of(method, Options())
    record.write(tmp_path, origin | {"parameters": ["0"]}, {})
    assert "another parameters" in refused(PROGRAM, run, scan, tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"scans": 3}', '{"scans": {"a": 3}}', "{"]
)
def test_a_damaged_record_is_refused(run, scan, content, tmp_path):
    (tmp_path / record.FILE).write_text(content)
    assert "reconstruct.json: " in refused(PROGRAM, run, scan, tmp_path)


def test_a_folder_that_another_process_writes_to_is_refused(run, scan, tmp_path):
    with files.alone_in(tmp_path):
        assert "another process is writing" in refused(PROGRAM, run, scan, tmp_path)


def test_sense_of_one_coil_is_refused(scan, tmp_path):
    message = refused(PROGRAM, "sense", scan, tmp_path / "out")
    assert "file1.h5: holds k-space of one coil on the grid" in message


def test_a_network_of_a_bank_has_no_other_acceleration(tmp_path):
    mask = MaskConfig(kind="bank", bank="masks.npy")
    config = dataclasses.replace(config_of(), mask=mask)
    volume = volumes.open_scan(write(tmp_path / "full.h5", kspace_of()), Selection())
    with pytest.raises(InputError, match=r"come from a bank.*kst-eval"):
        inputs.measure(volume, 0, config, Undersampling(acceleration=2.0))


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
