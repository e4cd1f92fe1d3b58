"""Scans off the grid in files: what is read, in which units, what is refused."""

import pickle

import h5py
import numpy as np
import pytest

from kst_jax import trajectories
from kst_jax.config import Config
from kst_jax.data import opening, volumes
from kst_jax.data.off_grid import OffGridVolume, TrajectoryOptions
from kst_jax.data_config import DataConfig, Selection
from kst_jax.doctor.examination import examine, patient_of
from kst_jax.errors import InputError
from tests.mrd_files import line
from tests.radial_files import (
    MAPS,
    POINTS,
    SHAPE,
    image,
    readouts,
    samples,
    write_bart,
    write_cfl,
    write_mrd,
)

DATA = samples(MAPS * image(), POINTS)
# From 1 / field of view of the image to each unit; a pixel is 10 mm.
UNITS = {
    "1/fov": 2,
    "1/recon_fov": 1,
    "cycles/pixel": 1 / 24,
    "radians/pixel": 2 * np.pi / 24,
    "cycles/m": 1 / 0.24,
    "radians/m": 2 * np.pi / 0.24,
}


def opened(path, trajectory=None, units=""):
    options = TrajectoryOptions(trajectory, units)
    volume = volumes.open_scan(path, Selection(), options)
    assert isinstance(volume, OffGridVolume)
    return volume


def with_third(points, value):
    return np.concatenate([points, np.full((*points.shape[:2], 1), value)], axis=-1)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_each_unit_is_recognised(tmp_path, unit, named):
    path = write_mrd(tmp_path / "a.h5", readouts(DATA, POINTS * UNITS[unit]))
    volume = pickle.loads(pickle.dumps(opened(path, units=unit if named else "")))
    assert (volume.shape, volume.coils, volume.depth) == (SHAPE, 3, 1)
    assert (volume.patient, volume.pixel) == ("P7", (10.0, 10.0))
    found = volume.read(0)
    np.testing.assert_array_equal(found.samples, DATA)
    np.testing.assert_allclose(found.points, POINTS, atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_rows_and_columns_have_units_of_their_own(tmp_path, unit):
    """An image of 32 x 24 pixels, 10 mm high and 5 mm wide."""
    sizes = {"encoded": (64, 20), "field": (640, 240), "recon": (32, 24)}
    points, metres = trajectories.radial((32, 24), 1.2), np.array([0.32, 0.12])
    stored = {
        "1/fov": 2 * points,
        "1/recon_fov": points,
        "cycles/pixel": points / (32, 24),
        "radians/pixel": 2 * np.pi * points / (32, 24),
        "cycles/m": points / metres,
        "radians/m": 2 * np.pi * points / metres,
    }
    path = write_mrd(
        tmp_path / "a.mrd", readouts(DATA, stored[unit]), shown=(320, 120), **sizes
    )
    volume = opened(path)
    assert (volume.shape, volume.pixel) == ((32, 24), (10.0, 5.0))
    np.testing.assert_allclose(volume.read(0).points, points, atol=1e-4)


def test_part_of_kspace_is_enough_if_one_unit_fits(tmp_path):
    path = write_mrd(tmp_path / "a.mrd", readouts(DATA, POINTS / 24 * 0.4))
    np.testing.assert_allclose(opened(path).read(0).points, POINTS * 0.4, atol=1e-4)
    assert opened(path).shape == SHAPE


def test_a_zero_filled_image_does_not_stretch_the_trajectory(tmp_path):
    """Pixels as encoded, not as shown, are what cycles / pixel count."""
    path = write_mrd(tmp_path / "a.mrd", readouts(DATA, POINTS / 24), recon=(32, 32))
    volume = opened(path)
    assert volume.shape == (32, 32)
    assert volume.pixel == (7.5, 7.5)
    np.testing.assert_allclose(volume.read(0).points, POINTS, atol=1e-4)


def test_a_coarser_image_keeps_all_samples(tmp_path):
    path = write_mrd(tmp_path / "a.mrd", readouts(DATA, POINTS / 24), recon=(20, 20))
    volume = opened(path)
    assert volume.shape == SHAPE
    assert volume.geometry.matrix == SHAPE
    np.testing.assert_allclose(volume.read(0).points, POINTS, atol=1e-4)


def test_a_matrix_too_large_for_any_scan_is_refused(tmp_path):
    acquired = readouts(DATA, POINTS / 24)
    path = write_mrd(tmp_path / "bad.mrd", acquired, encoded=(40_000, 20))
    with pytest.raises(
        InputError, match=r"bad\.mrd: .*needs a matrix of 20000 x 20000"
    ):
        opened(path)


def test_the_third_axis_may_be_flat(tmp_path):
    flat = with_third(POINTS, 1e-6)
    volume = opened(write_mrd(tmp_path / "a.mrd", readouts(DATA, flat)))
    np.testing.assert_allclose(volume.read(0).points, POINTS, atol=1e-5)


def test_what_is_no_data_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    junk = [
        np.concatenate([9 * np.ones((3, n)), x, np.ones((3, 3))], axis=1)
        for n, x in ((2, DATA[:, k]) for k in range(len(POINTS)))
    ]
    wild = [
        np.concatenate([99 * np.ones((2, 2)), p, 99 * np.ones((3, 2))]) for p in POINTS
    ]
    acquired = readouts(
        np.stack(junk, axis=1), np.stack(wild), discard_pre=2, discard_post=3
    )
    acquired += readouts(9 * DATA[:, :2], 7 * POINTS[:2], flags=[23])  # navigators
    acquired += [line(np.ones((3, 7)), 0, [27])]  # without a trajectory
    acquired += readouts(5 * DATA[:, :2], POINTS[:2], flags=[20])  # calibration
    noise = rng.normal(size=(2, 3, 4000)) * np.array([2, 3, 4])[:, None] / np.sqrt(2)
    acquired += [line(noise[0] + 1j * noise[1], 0, [19])]
    volume = opened(write_mrd(tmp_path / "a.mrd", acquired))
    found = volume.read(0)
    np.testing.assert_allclose(found.points, POINTS, atol=1e-4)
    white = DATA / np.array([2, 3, 4])[:, None, None]
    assert np.linalg.norm(found.samples - white) < 0.08 * np.linalg.norm(white)


def test_repetitions_are_images_of_their_own(tmp_path):
    acquired = [
        *readouts(DATA[:1, ::2], POINTS[::2], repetition=1),
        *readouts(DATA[:1, 1::2], POINTS[1::2]),
    ]
    volume = opened(write_mrd(tmp_path / "a.mrd", acquired))
    assert (volume.depth, volume.coils) == (2, 1)
    for index in volume.slices:
        found = volume.read(index)
        np.testing.assert_array_equal(found.samples, DATA[0, 1 - index :: 2])
        np.testing.assert_allclose(found.points, POINTS[1 - index :: 2], atol=1e-5)


def replaced(points, index, value):
    points = points.copy()
    points[index] = value
    return points


BAD = {
    "trajectory is radial, but not all acquisitions": lambda: (
        [line(DATA[:, n], n) for n in range(9)]
    ),
    "not all acquisitions say where": lambda: (
        [*readouts(DATA, POINTS), line(DATA[:, 0], 0)]
    ),
    "has 1 coordinates a sample": lambda: readouts(DATA, POINTS[..., :1]),
    "has 2 and 3 coordinates": lambda: (
        readouts(DATA, POINTS) + readouts(DATA, with_third(POINTS, 0))
    ),
    "reaches 5 along the third axis, so it is a 3D scan": lambda: readouts(
        DATA, with_third(POINTS, 5)
    ),
    "trajectory holds values that are not finite": lambda: readouts(
        DATA, replaced(POINTS, (3, 4, 1), np.nan)
    ),
    "all points of its trajectory are the centre": lambda: readouts(DATA, 0 * POINTS),
    "have 24 to 48 samples": lambda: (
        readouts(DATA, POINTS) + readouts(DATA[..., :24], POINTS[:, :24])
    ),
    "reaches 1000; no unit fits this.* 12 1/recon_fov, 0.5 cycles/pixel, 3.142 radi": (
        lambda: readouts(DATA, POINTS / 12 * 1000)
    ),
    "reaches 8; 1/fov and 1/recon_fov fit": lambda: readouts(DATA, POINTS / 12 * 8),
}


@pytest.mark.parametrize("cause", BAD)
def test_bad_trajectories_are_refused(tmp_path, cause):
    path = write_mrd(tmp_path / "bad.h5", BAD[cause]())
    with pytest.raises(InputError, match=f"bad.h5.*{cause}"):
        opened(path)


def test_a_trajectory_shorter_than_its_header_is_refused(tmp_path):
    path = write_mrd(tmp_path / "bad.mrd", readouts(DATA, POINTS))
    with h5py.File(path, "a") as file:
        one = file["dataset/data"][3]
        one["traj"] = one["traj"][:-2]
        file["dataset/data"][3] = one
    with pytest.raises(InputError, match="acquisition 3 has 48 samples, but 94 numb"):
        opened(path)


def test_points_beyond_the_edge_in_the_named_units_are_refused(tmp_path):
    path = write_mrd(tmp_path / "bad.h5", readouts(DATA, POINTS))
    with pytest.raises(InputError, match=r"reaches 12, which in cycles/pixel is 24 "):
        opened(path, units="cycles/pixel")


def test_too_few_readouts_are_refused(tmp_path):
    few = opened(write_mrd(tmp_path / "a.mrd", readouts(DATA[:, :2], POINTS[:2])))
    with pytest.raises(InputError, match=r"slice 0: 2 readouts of 48 samples .*less"):
        few.read(0)
    write_mrd(tmp_path / "b.mrd", readouts(DATA[:, ::5], POINTS[::5]))
    assert opened(tmp_path / "b.mrd").read(0).points.shape == (4, 48, 2)


def test_values_that_are_not_finite_are_refused(tmp_path):
    path = write_mrd(
        tmp_path / "a.mrd", readouts(replaced(DATA, (1, 2, 3), np.inf), POINTS)
    )
    with pytest.raises(InputError, match="slice 0 holds values that are not finite"):
        opened(path).read(0)


@pytest.mark.parametrize("kind", ["cfl", "npy"])
def test_barts_trajectory_lies_in_a_file_of_its_own(tmp_path, kind):
    data = np.stack([DATA, 2 * DATA])
    kspace, trajectory = write_bart(tmp_path, data, POINTS)
    if kind == "npy":
        trajectory = tmp_path / "points.npy"
        np.save(trajectory, POINTS)
    volume = pickle.loads(pickle.dumps(opened(kspace, trajectory)))
    assert (volume.shape, volume.coils, volume.depth) == (SHAPE, 3, 2)
    for index in volume.slices:
        found = volume.read(index)
        np.testing.assert_array_equal(found.samples, data[index])
        np.testing.assert_allclose(found.points, POINTS, atol=1e-6)


def bad_pair(cause, folder):
    kspace, trajectory = write_bart(folder, DATA[None], POINTS)
    if cause == "shorter":
        write_cfl(trajectory, with_third(POINTS[1:], 0).transpose(2, 1, 0))
    elif cause == "pixels":
        write_bart(folder, DATA[None], POINTS / 24)
    elif cause == "3D":
        write_cfl(trajectory, with_third(POINTS, 3).transpose(2, 1, 0))
    elif cause == "complex":
        write_cfl(trajectory, 1j * with_third(POINTS, 0).transpose(2, 1, 0))
    elif cause == "on the grid":
        write_cfl(kspace, np.ones((24, 24, 1, 3)))
    elif cause == "other dimension":
        write_cfl(kspace, np.ones((1, 48, 20, 3, 2)))
    elif cause == "few":
        write_bart(folder, DATA[None, :, :2], POINTS[:2])
    elif cause == "missing":
        trajectory.unlink()
    elif cause == "header":
        trajectory = trajectory.with_suffix(".hdr")
    elif cause == "array":
        trajectory = folder / "a.npy"
        np.save(trajectory, POINTS[0])
    return kspace, trajectory


@pytest.mark.parametrize(
    ("cause", "message"),
    {
        "shorter": r"trajectory\.cfl: has 19 readouts of 48 .*kspace\.cfl 20 of 48",
        "pixels": r"reaches 0\.5, which means a matrix of 2 x 2\. Store .* 1 / field",
        "3D": "reaches 3 along the third axis",
        "complex": "no real numbers",
        "on the grid": "24 values in dimension 0, so its k-space is on the grid",
        "other dimension": "dimension 4 .sets of maps. is 2, but only 1 .samples.",
        "few": "2 readouts of 48 samples run over",
        "missing": r"trajectory\.cfl: does not exist",
        "header": r"trajectory\.hdr: is no \.cfl or \.npy",
        "array": r"a\.npy: has shape \(48, 2\)",
    }.items(),
)
def test_pairs_that_do_not_fit_are_refused(tmp_path, cause, message):
    kspace, trajectory = bad_pair(cause, tmp_path)
    with pytest.raises(InputError, match=message):
        opened(kspace, trajectory)


def test_options_that_do_not_belong_to_a_file_are_refused(tmp_path):
    kspace, trajectory = write_bart(tmp_path, DATA[None], POINTS)
    with pytest.raises(InputError, match="trajectory_units=cycles/pixel: BART's files"):
        opened(kspace, trajectory, "cycles/pixel")
    path = write_mrd(tmp_path / "a.mrd", readouts(DATA, POINTS))
    with pytest.raises(InputError, match=r"a\.mrd: --trajectory=.*Leave it out"):
        opened(path, trajectory)


def test_barts_files_alone_say_what_they_are(tmp_path):
    kspace, trajectory = write_bart(tmp_path, DATA[None], POINTS)
    with pytest.raises(InputError, match=r"20 readouts of 48 .* --trajectory=FILE"):
        opened(kspace)
    with pytest.raises(InputError, match="dimensions of a trajectory, 20 readouts"):
        opened(trajectory)


def test_training_and_evaluation_refuse_such_files(tmp_path):
    write_mrd(tmp_path / "a.mrd", readouts(DATA, POINTS))
    scans = str(tmp_path)
    with pytest.raises(InputError, match=r"a\.mrd: was measured off the grid"):
        opening.open_test_source(Config(data=DataConfig(test=scans)))
    with pytest.raises(InputError, match=r"a\.mrd: was measured off the grid"):
        opening.open_sources(Config(data=DataConfig(train=scans)))


def test_the_doctor_describes_such_files(tmp_path):
    path = write_mrd(tmp_path / "a.h5", readouts(DATA, POINTS / 24))
    found = examine(path, DataConfig(), Selection())
    assert (found.kind, found.coils, found.sizes) == ("ISMRMRD", 3, [SHAPE])
    notes = [one.what for one in found.findings if one.level == "note"]
    assert notes == [
        "3 coils; no noise scan.",
        "20 readouts of 48 samples, 1.2 times undersampled; the file's 0.5 is 12 in "
        "units of 1 / field of view.",
        "acquisitions with flags: none.",
    ]
    (error,) = [one.what for one in found.findings if one.level == "error"]
    assert error.startswith("was measured off the grid")
    assert patient_of(path) == "P7"
    kspace, _ = write_bart(tmp_path, DATA[None], POINTS)
    found = examine(kspace, DataConfig(), Selection())
    assert found.stored[:4] == (1, 48, 20, 3)
    assert "--trajectory=FILE.cfl" in found.findings[0].what


def test_acceleration_counts_what_readouts_run_over():
    shape = (48, 40)
    spokes = trajectories.radial((48, 48), 4)
    assert trajectories.acceleration(spokes, (48, 48)) == pytest.approx(4, rel=1e-5)
    # However densely they are sampled.
    assert trajectories.covered(spokes[:, ::2]) == pytest.approx(12 * 48)
    points = trajectories.gaussian_points(np.random.default_rng(0), shape, 5)
    assert trajectories.acceleration(points, shape) == pytest.approx(5, rel=1e-3)
    arms = trajectories.spiral((48, 48), 4)
    assert 4 < trajectories.acceleration(arms, (48, 48)) < 5
    lines = np.stack(np.mgrid[-24:24, -20:20], axis=-1)
    assert trajectories.acceleration(lines, shape) == 1
