"""kst-reconstruct of scans off the grid: images, units, refusals, warnings."""

import json

import h5py
import jax
import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.config import Config
from kst_jax.data import nufft, trajectory_sampling
from kst_jax.data.fourier import ifft2c
from kst_jax.data.off_grid import TrajectoryOptions
from kst_jax.data.volumes import open_scan
from kst_jax.data_config import DataConfig, Selection
from kst_jax.errors import InputError
from kst_jax.export import command as export
from kst_jax.mask_config import MaskConfig
from kst_jax.models.registry import build
from kst_jax.readouts import tokenise
from kst_jax.reconstruct import inputs, off_grid, runner
from kst_jax.reconstruct.runner import Options, reconstruct
from kst_jax.runs.checkpoints import write_parameters
from kst_jax.trajectories import Trajectory, gaussian_points, radial, spiral
from tests.baselines import TINY as BASELINES
from tests.fastmri_files import fft
from tests.programs import refused, run_here
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
from tests.references import make_kst_tiny
from tests.test_training import TINY

PROGRAM = "kst-reconstruct"
COILS = samples(MAPS * image(), POINTS)
ONE = samples(image()[None], POINTS)


def reconstruction(out, name="a"):
    with h5py.File(out / f"{name}.h5") as file:
        return file["reconstruction"][()] * np.exp(1j * file["phase"][()])


def error(found, wanted):
    inside = np.abs(wanted) > 0.1 * np.abs(wanted).max()
    return np.linalg.norm((found - wanted)[inside]) / np.linalg.norm(wanted[inside])


def network(folder, kind="radial", acceleration=1.2, model=BASELINES["unet"]):
    """A checkpoint of a small network of random parameters."""
    config = Config(
        data=DataConfig(size=SHAPE), mask=MaskConfig(kind, acceleration), model=model
    )
    example = tokenise(ONE[0], trajectory(), SHAPE, (1, 1))
    model = build(config.model)
    params = make_kst_tiny.weights(model, tokens.batch_of([example]))
    write_parameters(folder, params, config)
    return config, model, params


def trajectory():
    return Trajectory(POINTS, nufft.compensation(POINTS, SHAPE))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, *network(folder)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    return write_mrd(folder / "a.h5", readouts(ONE, POINTS / 24))


def test_the_gridded_image_of_coils_is_nearly_what_they_see(tmp_path):
    points = radial(SHAPE, 0.5)
    data = samples(MAPS * image(), points)
    path = write_mrd(tmp_path / "a.mrd", readouts(data, points))
    found = off_grid.measure(open_scan(path, Selection()), 0)
    assert found.acceleration == pytest.approx(0.5, rel=1e-3)
    seen = ifft2c(found.calibration)
    assert error(seen, MAPS * image()) < 0.1


def test_virtual_coils_see_what_the_coils_would(tmp_path):
    path = write_mrd(tmp_path / "a.mrd", readouts(COILS, POINTS))
    measured = off_grid.measure(open_scan(path, Selection()), 0)
    found = runner._compressed({0: measured}, 2)[0]
    assert found.kspace.shape == (2, 20, 48)
    again = off_grid.OffGrid.gridded(found.kspace, found.trajectory, SHAPE, None)
    np.testing.assert_allclose(again.calibration, found.calibration, atol=1e-4)
    energy = np.linalg.norm(found.calibration) / np.linalg.norm(measured.calibration)
    assert 0.9 < energy <= 1


def test_an_image_lies_where_the_scanner_says(tmp_path):
    """A bright pixel is at its place in the patient."""
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    read, phase, across = rotation.T
    centre, pixel = np.array([5.0, -17.0, 40.0]), np.zeros((1, *SHAPE))
    pixel[0, 5, 16] = 1
    names = {"position": centre, "read_dir": read, "phase_dir": phase}
    acquired = readouts(
        samples(pixel, POINTS),
        POINTS,
        **{n: tuple(v) for n, v in (names | {"slice_dir": across}).items()},
    )
    volume = open_scan(write_mrd(tmp_path / "a.mrd", acquired), Selection())
    seen = np.abs(ifft2c(off_grid.measure(volume, 0).calibration))
    row, column = np.unravel_index(seen.argmax(), SHAPE)
    found = volume.geometry.affine @ [row, column, 0, 1]
    wanted = centre + (5 - 12) * 10 * read + (16 - 12) * 10 * phase
    np.testing.assert_allclose(found[:3], wanted * [-1, -1, 1], atol=1e-3)


@pytest.mark.slow
def test_cg_sense_restores_coils_of_both_formats(tmp_path):
    """In the scan's units; the trajectory that lies beside a scan is none."""
    folder = tmp_path / "scans"
    folder.mkdir()
    _, beside = write_bart(folder, COILS[None], POINTS)
    options = [f"--trajectory={beside}", "--complex", "--batch_size=1"]
    done = run_here(PROGRAM, "sense", folder, tmp_path / "bart", *options)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    record = json.loads((tmp_path / "bart" / "reconstruct.json").read_text())
    (about,) = record["scans"].values()
    assert about["size"] == list(SHAPE)
    assert about["acceleration"] == pytest.approx(1.2, rel=1e-3)
    (found,) = np.abs(reconstruction(tmp_path / "bart", "kspace"))
    assert error(found, np.abs(image())) < 0.05
    write_mrd(tmp_path / "a.mrd", readouts(COILS, POINTS / 24))
    kind = Options(phase=True, batch_size=1)
    reconstruct("sense", str(tmp_path / "a.mrd"), tmp_path / "mrd", kind)
    (other,) = np.abs(reconstruction(tmp_path / "mrd"))
    np.testing.assert_allclose(other, found, atol=1e-3 * found.max())


@pytest.mark.slow
@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("name", ["unet", "kst"])
def test_images_are_those_of_the_network(name, run, scan, tmp_path):
    """By hand: the gridded image is divided by its root mean square."""
    folder, _, model, params = run
    if name == "kst":
        folder = tmp_path / "run"
        _, model, params = network(folder, model=TINY.model)
    done = run_here(
        PROGRAM, folder, scan, tmp_path / "out", "--complex", "--batch_size=1"
    )
    assert done.returncode == 0, done.stderr
    assert "trained" not in done.stderr
    points = trajectory()
    gridded = nufft.to_image(ONE[0] * points.density, POINTS, SHAPE)
    scale = np.sqrt(np.mean(np.abs(gridded) ** 2) / 2)
    batch = tokens.batch_of([tokenise(ONE[0] / scale, points, SHAPE, (1, 1))])
    wanted = np.asarray(jax.jit(model.reconstruct)(params, batch).image[0]) * scale
    found = reconstruction(tmp_path / "out")[0]
    difference = np.abs(found - (wanted[..., 0] + 1j * wanted[..., 1]))
    assert difference.max() < 1e-3 * np.abs(found).max()


def test_a_full_scan_is_tried_by_the_networks_own_trajectory(run, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = fft(image())[None].astype("c8")
    message = refused(PROGRAM, run[0], path, tmp_path / "out")
    assert "a.h5: was measured on the grid, but the network was trained off" in message
    assert "--acceleration=4" in message
    done = run_here(
        PROGRAM, run[0], path, tmp_path / "out", "--acceleration=1.2", "--batch_size=1"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "reconstruct.json").read_text())
    assert record["scans"]["a.h5"]["acceleration"] == pytest.approx(1.2, rel=1e-3)
    message = refused(
        PROGRAM, run[0], path, tmp_path / "other", f"--mask={masks(tmp_path)}"
    )
    assert "masks have no meaning" in message


def masks(folder):
    np.save(folder / "mask.npy", np.ones(24))
    return folder / "mask.npy"


def test_what_does_not_suit_scans_off_the_grid_is_refused(run, scan, tmp_path):
    network(tmp_path / "grid", "uniform_1d", 4.0)
    message = refused(PROGRAM, tmp_path / "grid", scan, tmp_path / "out")
    assert "a.h5: was measured off the grid, but the network was" in message
    assert "mask.kind='uniform_1d'" in message
    for option in ("--acceleration=4", f"--mask={masks(tmp_path)}"):
        message = refused(PROGRAM, "sense", scan, tmp_path / "out", option)
        assert "a.h5: was measured off the grid, along its trajectory" in message
    assert not (tmp_path / "out").exists()


def test_a_try_samples_a_full_scan_of_any_proportions():
    """By plain sums, along the trajectory of that slice."""
    rng, shape = np.random.default_rng(0), (20, 16)
    image = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype("c8")
    config = Config(
        data=DataConfig(size=SHAPE),
        mask=MaskConfig("radial", 1.2),
        model=BASELINES["unet"],
    )
    found = off_grid.simulate(fft(image).astype("c8"), None, config, 2.0, ("a", 3))
    own = trajectory_sampling.sampler(MaskConfig("radial", 2.0), shape)
    wanted = own.fixed("a", 3, config.eval.seed)
    np.testing.assert_array_equal(found.trajectory.points, wanted.points)
    (measured,) = samples(image[None], wanted.points)
    np.testing.assert_allclose(found.kspace, measured, atol=1e-4)
    assert found.calibration.shape == shape


def test_the_combined_gridded_image_of_coils_sets_the_scale():
    config = Config(
        data=DataConfig(size=SHAPE),
        mask=MaskConfig("radial", 1.2),
        model=BASELINES["unet"],
    )
    measured = off_grid.OffGrid.gridded(COILS, trajectory(), SHAPE, None)
    maps = np.stack([MAPS.real, MAPS.imag], axis=-1)
    fields, scaling = inputs.tokenise(measured, maps, config, None, "a")
    seen = nufft.to_image(COILS * trajectory().density, POINTS, SHAPE)
    scale = np.sqrt(np.mean(np.abs((MAPS.conj() * seen).sum(axis=0)) ** 2) / 2)
    assert scaling.std == pytest.approx(scale, rel=1e-4)
    scaled = fields["kspace"][..., 0] + 1j * fields["kspace"][..., 1]
    np.testing.assert_allclose(scaled, COILS.reshape(3, -1) / scale, rtol=1e-4)
    np.testing.assert_array_equal(fields["maps"], maps)


def test_slices_with_other_numbers_of_readouts_are_refused(tmp_path):
    acquired = [*readouts(ONE, POINTS), *readouts(ONE, POINTS, slice=1)[:-1]]
    path = write_mrd(tmp_path / "a.mrd", acquired)
    with pytest.raises(InputError, match=r"a\.mrd: its slices differ in size"):
        reconstruct("sense", str(path), tmp_path / "out", Options(batch_size=1))


def test_a_trajectory_alone_is_no_scan(tmp_path):
    path = write_cfl(tmp_path / "t.cfl", np.ones((3, 48, 20)))
    message = refused(PROGRAM, "sense", path, tmp_path / "out", f"--trajectory={path}")
    assert "is the trajectory alone" in message


def test_differences_from_the_training_are_told():
    config = Config(
        data=DataConfig(size=SHAPE),
        mask=MaskConfig("radial", 1.2),
        model=BASELINES["unet"],
    )

    def found(points):
        return off_grid.differences(
            off_grid.OffGrid(
                np.zeros(points.shape[:2]),
                Trajectory(points, np.ones(points.shape[:2])),
                np.zeros(SHAPE),
                None,
            ),
            config,
        )

    assert found(POINTS) == {}
    assert found(radial(SHAPE, 1.1, golden=True)) == {}
    assert list(found(radial(SHAPE, 4.0))) == ["acceleration"]
    told = found(radial(SHAPE, 4.0))["acceleration"]
    assert told == "is undersampled 4.0 times; the network was trained on 1.2 times"
    assert found(spiral(SHAPE, 1.2)) == {
        "pattern": "is sampled by curves; the network was trained on straight lines"
    }
    assert found(gaussian_points(np.random.default_rng(0), SHAPE, 1.2)) == {
        "pattern": "is sampled by single points; the network was trained on straight "
        "lines"
    }


def test_a_network_off_the_grid_is_not_exported(run, tmp_path):
    _, config, _, params = run
    with pytest.raises(InputError, match=r"off the grid \(mask\.kind='radial'\)"):
        export.export(config, params)


@pytest.mark.slow
@pytest.mark.usefixtures("full_compilation")
def test_barts_radial_scan_is_as_good_as_barts_image(shared, tmp_path):
    """With maps of the scan's own; BART had those of the fully sampled slice."""
    golden = np.load(shared / "goldens" / "bart_radial.npz")
    kspace = write_cfl(tmp_path / "a.cfl", golden["kspace"])
    beside = write_cfl(tmp_path / "t.cfl", golden["trajectory"])
    options = Options(
        phase=True, batch_size=1, trajectory=TrajectoryOptions(path=beside)
    )
    reconstruct("sense", str(kspace), tmp_path / "out", options)
    found = np.abs(reconstruction(tmp_path / "out")[0])
    truth, bart = np.abs(golden["image"]), np.abs(golden["pics_l2"])

    def differs(one, other):
        scale = np.vdot(one, other) / np.vdot(one, one)
        return np.linalg.norm(scale * one - other) / np.linalg.norm(other)

    assert found.shape == truth.shape
    assert np.vdot(found, truth) / np.vdot(found, found) == pytest.approx(1, abs=0.01)
    assert differs(found, bart) < 0.01
    assert differs(found, truth) < differs(bart, truth) + 0.001
