"""Trajectories, their density, and readouts as tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import readouts, trajectories
from kst_jax.data import nufft, trajectory_sampling
from kst_jax.errors import InputError
from kst_jax.mask_config import TRAJECTORIES, MaskConfig
from kst_jax.non_cartesian import NonCartesian
from kst_jax.trajectories import Trajectory

SHAPE = (20, 16)
HALF = np.array(SHAPE) / 2
MIDDLE = np.array(SHAPE) // 2


def disc(shape):
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (rows**2 + columns**2 < 0.5).astype(np.complex64)


@pytest.mark.parametrize("acceleration", [2, 4])
def test_spokes_cross_the_centre_at_equal_angles(acceleration):
    points = trajectories.radial(SHAPE, acceleration)
    assert points.shape == (16 // acceleration, 32, 2)
    np.testing.assert_array_equal(points[:, 16], 0)
    steps = np.linalg.norm(np.diff(points / HALF, axis=1), axis=-1)
    np.testing.assert_allclose(steps, 1 / 16, rtol=1e-4)
    angles = np.unwrap(np.arctan2(*(points[:, -1] / HALF).T))
    np.testing.assert_allclose(np.diff(angles), np.pi * acceleration / 16, rtol=1e-4)


def test_golden_spokes_turn_by_the_golden_angle():
    ends = (trajectories.radial(SHAPE, 2, golden=True)[:, -1] / HALF).astype(float)
    turn = np.unwrap(np.arctan2(*ends.T), period=2 * np.pi)
    np.testing.assert_allclose(np.diff(turn) % np.pi, math.radians(111.246), rtol=1e-4)


def test_a_spiral_winds_once_outwards_in_small_steps():
    points = trajectories.spiral((48, 48), 4)
    assert points.shape == (6, 144, 2)
    radius = np.linalg.norm(points, axis=-1)
    np.testing.assert_array_equal(radius[:, 0], 0)
    np.testing.assert_allclose(radius[:, -1], 24, rtol=1e-5)
    steps = np.linalg.norm(np.diff(points, axis=1), axis=-1)
    assert steps.max() < 0.7
    angles = np.unwrap(np.arctan2(points[0, 1:, 0], points[0, 1:, 1]))
    assert angles[-1] - angles[0] == pytest.approx(2 * np.pi, rel=0.05)
    # The arms are as far apart as the acceleration says.
    along = np.sort(radius[np.abs(np.arctan2(points[..., 0], points[..., 1])) < 0.05])
    assert np.diff(along).max() == pytest.approx(4, rel=0.1)


def test_a_spiral_has_the_proportions_of_the_image():
    points = trajectories.spiral(SHAPE, 2)
    assert points.shape == (16 // 4, 3 * 16, 2)
    radius = np.linalg.norm(points / HALF, axis=-1)
    np.testing.assert_allclose(radius[:, -1], 1, rtol=1e-5)
    assert radius[:, :-1].max() < 1


def test_points_follow_the_normal_distribution_off_the_grid():
    drawn = trajectories.gaussian_points(np.random.default_rng(0), (200, 100), 5)
    assert drawn.shape == (4000, 1, 2)
    points = drawn[:, 0]
    assert (np.abs(points) <= (100, 50)).all()
    assert np.mean(np.abs(points - np.round(points)) < 0.01) < 0.1
    # A normal distribution that is cut off at two standard deviations.
    np.testing.assert_allclose(points.std(axis=0), [44, 22], rtol=0.05)


@pytest.mark.parametrize("draw", [trajectories.radial, trajectories.spiral])
def test_an_acceleration_that_leaves_nothing_is_refused(draw):
    with pytest.raises(InputError, match=r"leaves no .*lower mask\.acceleration"):
        draw(SHAPE, 40.0)


def test_turning_keeps_distances_in_a_square_field():
    points = trajectories.radial((16, 16), 4)
    ones = np.ones(points.shape[:2], np.float32)
    turned = Trajectory(points, ones).turned(0.3, (16, 16)).points
    angle = np.arctan2(turned[0, -1, 0], turned[0, -1, 1])
    assert angle == pytest.approx(0.3, rel=1e-4)
    flat, other = points.reshape(-1, 2), turned.reshape(-1, 2)
    np.testing.assert_allclose(flat @ flat.T, other @ other.T, atol=1e-4)


def test_points_of_a_whole_grid_have_weight_one_and_a_lone_one_more():
    points = np.stack(
        np.meshgrid(np.arange(-10, 10), np.arange(-8, 8), indexing="ij"), -1
    ).astype(np.float32)
    np.testing.assert_allclose(nufft.compensation(points, SHAPE), 1, atol=5e-3)
    alone = nufft.compensation(points[:1, :1], SHAPE)
    np.testing.assert_allclose(alone, 4 / np.pi, rtol=5e-3)


@pytest.mark.parametrize("draw", [trajectories.radial, trajectories.spiral])
def test_the_gridded_image_of_dense_sampling_is_the_image(draw):
    shape, dense = (48, 48), 0.6 if draw is trajectories.radial else 0.9
    points, image = draw(shape, dense), disc((48, 48))
    density = nufft.compensation(points, shape)
    gridded = nufft.to_image(nufft.to_samples(image, points) * density, points, shape)
    # Corners of k-space are missing.
    assert np.linalg.norm(gridded - image) < 0.1 * np.linalg.norm(image)


@pytest.mark.slow
def test_both_transforms_of_the_host_are_those_of_networks():
    points = trajectories.gaussian_points(np.random.default_rng(0), SHAPE, 5)
    rng, ones = np.random.default_rng(1), np.ones((1, len(points)))
    acquisition = NonCartesian.on(jnp.asarray(points[None, :, 0]), ones, SHAPE)
    image = rng.normal(size=(*SHAPE, 2)).astype(np.float32)
    complex_image = image.view(np.complex64)[..., 0]
    found = jax.jit(acquisition.forward)(image[None])[0]
    samples = nufft.to_samples(complex_image, points)
    np.testing.assert_allclose(found[..., 0], samples.real[:, 0], atol=1e-4)
    np.testing.assert_allclose(found[..., 1], samples.imag[:, 0], atol=1e-4)
    gridded = nufft.to_image(np.stack([samples, 2 * samples]), points, SHAPE)
    found = jax.jit(acquisition.adjoint)(found[None])[0]
    np.testing.assert_allclose(found[..., 0], gridded[0].real, atol=1e-4)
    np.testing.assert_allclose(2 * found[..., 1], gridded[1].imag, atol=2e-4)


@pytest.mark.parametrize("kind", TRAJECTORIES)
def test_a_slice_keeps_its_trajectory_in_evaluation(kind):
    sampler = trajectory_sampling.sampler(MaskConfig(kind, 4.0), SHAPE)
    one, other, again = (
        sampler.fixed("scan.h5", index, 0).points for index in (1, 2, 1)
    )
    np.testing.assert_array_equal(one, again)
    elsewhere = [
        sampler.fixed(*at).points for at in (("b.h5", 1, 0), ("scan.h5", 1, 1))
    ]
    for different in (other, *elsewhere):
        assert np.abs(one - different).max() > 0.01
    first, second = (sampler.random(np.random.default_rng(n)) for n in (0, 1))
    assert first.points.shape == second.points.shape
    assert first.density.shape == first.points.shape[:2]
    assert (np.abs(first.points) <= HALF + 1e-4).all()


def test_a_setting_serves_images_of_any_shape():
    sampler = trajectory_sampling.sampler(MaskConfig("radial", 4.0), SHAPE)
    assert sampler.fixed_acceleration("scan.h5") == 4
    larger = sampler.at((48, 40))
    assert larger.shape == (48, 40)
    points = larger.random(np.random.default_rng(0)).points
    assert points.shape == (10, 80, 2)
    assert np.abs(points).max(axis=(0, 1)) == pytest.approx([24, 20], rel=0.05)
    assert larger.layout((1, 1)).tokens((48, 40)) == 10 * 80


def test_a_trajectory_keeps_its_density_when_it_turns():
    sampler = trajectory_sampling.sampler(MaskConfig("radial", 2.0), (48, 48))
    one = sampler.random(np.random.default_rng(0))
    wanted = nufft.compensation(one.points, (48, 48))
    inside = np.linalg.norm(one.points, axis=-1) < 21  # k-space is periodic at its edge
    np.testing.assert_allclose(one.density[inside], wanted[inside], atol=0.01)


@pytest.fixture(scope="module")
def scan():
    """Three readouts of five samples, of two coils."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-HALF, HALF, (3, 5, 2)).astype(np.float32)
    density = rng.uniform(size=(3, 5)).astype(np.float32)
    samples = rng.normal(size=(2, 3, 5, 2)).view(np.complex128)[..., 0]
    return samples.astype(np.complex64), Trajectory(points, density)


def test_a_token_is_a_sample_at_its_coordinate(scan):
    samples, trajectory = scan
    found = readouts.tokenise(samples[0], trajectory, SHAPE, (1, 1))
    flat = samples[0].ravel()
    np.testing.assert_array_equal(found["value"], np.stack([flat.real, flat.imag], -1))
    # The middle of the grid is its point 10 of 20, and 8 of 16.
    wanted = (trajectory.points.reshape(-1, 2) + MIDDLE) / (19, 15)
    np.testing.assert_allclose(found["position"], wanted, rtol=1e-5)
    assert "seen" not in found
    np.testing.assert_array_equal(found["query"], np.arange(20 * 16))
    assert not found["mask"].any()


@pytest.mark.parametrize("shape", [(7, 5), (6, 9)])
def test_points_of_a_grid_have_its_coordinates(shape):
    """Its centre is the point in the middle, if its sizes are odd."""
    points = np.argwhere(np.ones(shape)) - np.array(shape) // 2
    trajectory = Trajectory(points[:, None].astype("f4"), np.ones((len(points), 1)))
    samples = np.ones((len(points), 1), np.complex64)
    found = readouts.tokenise(samples, trajectory, shape, (1, 1))["position"]
    rows, columns = (np.linspace(0, 1, n) for n in shape)
    np.testing.assert_allclose(found.reshape(*shape, 2)[:, 0, 0], rows, atol=1e-6)
    np.testing.assert_allclose(found.reshape(*shape, 2)[0, :, 1], columns, atol=1e-6)


def test_a_token_of_several_samples_is_a_piece_of_a_readout(scan):
    samples, trajectory = scan
    found = readouts.tokenise(samples, trajectory, SHAPE, (1, 2))
    assert found["value"].shape == (9, 8)
    second = samples[:, 1, 2:4]  # of the second readout, its second piece
    wanted = [second[c, s] for s in range(2) for c in range(2)]
    np.testing.assert_array_equal(
        found["value"][4], np.stack([np.real(wanted), np.imag(wanted)], -1).ravel()
    )
    np.testing.assert_array_equal(found["value"][5, 4:], 0)
    np.testing.assert_array_equal(found["seen"][3:6], [[1, 1], [1, 1], [1, 0]])
    last = (trajectory.points[1, 4] + MIDDLE) / (19, 15)
    np.testing.assert_allclose(found["position"][5], last, rtol=1e-5)
    middle = (trajectory.points[1, 2:4].mean(axis=0) + MIDDLE) / (19, 15)
    np.testing.assert_allclose(found["position"][4], middle, rtol=1e-5)
    np.testing.assert_array_equal(found["query"], np.arange(20 * 8))
    layout = readouts.ReadoutLayout(3, 5, (1, 2))
    assert (layout.tokens(SHAPE), layout.queries(SHAPE)) == (9, 160)


def test_trajectories_that_do_not_fit_are_refused(scan):
    samples, trajectory = scan

    def refused(points, message):
        broken = Trajectory(points, trajectory.density)
        with pytest.raises(InputError, match=message):
            readouts.tokenise(samples, broken, SHAPE, (1, 1))

    refused(trajectory.points[:2], "2 readouts of 5 samples; use the trajectory")
    refused(trajectory.points * 3, "beyond half the matrix of 20 x 16; its units")
    refused(np.where(trajectory.points > 5, np.nan, trajectory.points), "not finite")
