"""BART's arrays: what is read, what is refused."""

import numpy as np
import pytest

from kst_jax.config import Config
from kst_jax.data import finding, opening, volumes
from kst_jax.data_config import DataConfig, Selection
from kst_jax.doctor.examination import examine
from kst_jax.errors import InputError
from tests.scans import IMAGES, KSPACE, read_all

RNG = np.random.default_rng(0)
COILS = (RNG.normal(size=(4, 3, 6, 5)) + 1j * RNG.normal(size=(4, 3, 6, 5))).astype(
    "c8"
)


def write(path, kspace_SxCxHxW, **changed):
    """Writes a pair as BART does: dimension 0 changes fastest."""
    slices, coils, rows, columns = kspace_SxCxHxW.shape
    sizes = {0: rows, 1: columns, 3: coils, 13: slices} | {
        int(place[1:]): size for place, size in changed.items()
    }
    words = " ".join(str(sizes.get(place, 1)) for place in range(16))
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{words} \n# Command\ntraj\n")
    array = np.transpose(kspace_SxCxHxW, (2, 3, 1, 0))
    path.write_bytes(array.astype("<c8").tobytes(order="F"))
    return path


def test_one_coil_is_read_like_any_scan(tmp_path):
    write(tmp_path / "scan.cfl", KSPACE[:, None])
    found = read_all(tmp_path)
    assert len(found) == len(IMAGES)
    for item, image in zip(found, IMAGES, strict=True):
        np.testing.assert_allclose(item.image, image, atol=1e-6)
        assert (item.volume, item.measured) == ("scan", False)


@pytest.mark.parametrize("name", ["scan.cfl", "scan.hdr"])
def test_either_file_names_the_pair(tmp_path, name):
    write(tmp_path / "scan.cfl", KSPACE[:, None])
    (scan,) = finding.find(str(tmp_path / name))
    assert scan.path == tmp_path / "scan.cfl"


def test_coils_are_read_as_measured(tmp_path):
    volume = volumes.open_scan(write(tmp_path / "a.cfl", COILS), Selection())
    assert (volume.coils, volume.shape, volume.depth) == (3, (6, 5), 4)
    for index in volume.slices:
        np.testing.assert_array_equal(volume.sample(index).kspace, COILS[index])
    config = Config(data=DataConfig(test=str(tmp_path)))
    with pytest.raises(InputError, match=r"a\.cfl: holds k-space of 3 coils"):
        opening.open_test_source(config)


def test_the_doctor_shows_coils(tmp_path):
    found = examine(write(tmp_path / "a.cfl", COILS), DataConfig(), Selection())
    assert (found.coils, found.stored) == (3, (4, 3, 6, 5))
    assert "3 coils" in found.findings[0].what


def test_the_header_may_list_few_dimensions(tmp_path):
    write(tmp_path / "a.cfl", KSPACE[:1, None])
    (tmp_path / "a.hdr").write_text("# Dimensions\n6 5\n")
    (item,) = read_all(tmp_path)
    np.testing.assert_allclose(item.image, IMAGES[0], atol=1e-6)


def other_header(text):
    def change(path):
        path.with_suffix(".hdr").write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.with_suffix(".hdr").unlink(), "its header bad.hdr is missing"),
        (
            lambda p: write(p, COILS, d2=2),
            "dimension 2 .the second phase encoding. is 2",
        ),
        (
            lambda p: write(p, COILS, d10=7, d4=2),
            "dimension 4 .sets of maps. is 2, dimension 10 .time. is 7",
        ),
        (lambda p: p.write_bytes(p.read_bytes()[:-8]), "holds 2872 bytes, but .* 2880"),
        (lambda p: p.write_bytes(p.read_bytes() * 2), "holds 5760 bytes, but .* 2880"),
        (other_header(""), "no line of dimensions"),
        (other_header("# Dimensions\n"), "no line of dimensions"),
        (other_header("# Dimensions\n6 five\n"), "no line of dimensions"),
        (other_header("# Dimensions\n6 -5\n"), "no line of dimensions"),
        (other_header("# Dimensions\n0 5\n"), "no line of dimensions"),
        (other_header("# Dimensions\n" + "9" * 9 + " 9\n"), "probably damaged"),
    ],
)
def test_bad_pairs_are_refused(tmp_path, change, message):
    path = write(tmp_path / "bad.cfl", COILS)
    change(path)
    with pytest.raises(InputError, match=message):
        volumes.open_scan(path, Selection())


def test_values_that_are_not_finite_are_refused(tmp_path):
    broken = COILS.copy()
    broken[2, 1, 0, 0] = np.nan
    volume = volumes.open_scan(write(tmp_path / "a.cfl", broken), Selection())
    with pytest.raises(InputError, match="slice 2 holds values that are not finite"):
        volume.sample(2)
