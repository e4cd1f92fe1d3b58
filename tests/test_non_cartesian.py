"""Sampling off the grid, against plain sums of numpy and against BART."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax.acquisition import Acquisition
from kst_jax.birdcage import birdcage
from kst_jax.fourier import to_channels
from kst_jax.models import sense
from kst_jax.non_cartesian import NonCartesian

SHAPES = [(8, 6), (7, 9)]
POINTS = 40


def channels(x):
    return to_channels(jnp.asarray(x, jnp.complex64))


def complex_of(x):
    x = np.asarray(x, np.float64)
    return x[..., 0] + 1j * x[..., 1]


def plain_sum(trajectory_Nx2, shape):
    """The matrix (N, H W) of the transform from an image to samples."""
    phases = [
        np.exp(-2j * np.pi * np.outer(k, np.arange(n) - n // 2) / n) / np.sqrt(n)
        for k, n in zip(trajectory_Nx2.T, shape, strict=True)
    ]
    return np.einsum("nr,nc->nrc", *phases).reshape(len(trajectory_Nx2), -1)


class Case:
    """Two slices on different trajectories, with or without coils, as matrices too."""

    def __init__(self, shape, coils):
        rng = np.random.default_rng(0)
        self.shape, lead = shape, (2, coils) if coils else (2,)
        half = np.array(shape) / 2
        trajectory = rng.uniform(-half, half, (2, POINTS, 2))
        self.weights = rng.uniform(0.1, 1, (2, POINTS))
        self.image, self.kspace = (
            rng.normal(size=size) + 1j * rng.normal(size=size)
            for size in ((2, *shape), (*lead, POINTS))
        )
        maps = np.stack([birdcage(n, shape, coils) for n in (1, 2)]) if coils else None
        seen = np.ones((2, 1, *shape)) if maps is None else maps
        self.matrices = [
            np.concatenate([plain_sum(t, shape) * s.reshape(-1) for s in each])
            for t, each in zip(trajectory, seen, strict=True)
        ]
        self.acquisition = NonCartesian.on(
            jnp.asarray(trajectory, jnp.float32),
            jnp.asarray(self.weights, jnp.float32),
            shape,
            None if maps is None else channels(maps),
        )

    def weighted(self, kspace):
        lead = 1 if kspace.ndim == 2 else kspace.shape[1]
        weights = np.tile(self.weights[:, None], (1, lead, 1))
        return kspace * weights.reshape(kspace.shape)

    def by_matrix(self, x, shape, adjoint=False):
        return np.stack(
            [
                (a.conj().T if adjoint else a) @ each.ravel()
                for a, each in zip(self.matrices, x, strict=True)
            ]
        ).reshape(2, *shape)


@pytest.fixture(scope="module", params=zip(SHAPES, (0, 3), strict=True), ids=str)
def case(request):
    return Case(*request.param)


def close(found, wanted):
    np.testing.assert_allclose(
        complex_of(found), wanted, atol=3e-5 * np.abs(wanted).max()
    )


def test_samples_are_a_plain_sum_over_pixels(case):
    found = jax.jit(case.acquisition.forward)(channels(case.image))
    close(found, case.by_matrix(case.image, case.kspace.shape[1:]))


def test_the_adjoint_grids_weighted_samples(case):
    wanted = case.by_matrix(case.weighted(case.kspace), case.shape, adjoint=True)
    close(case.acquisition.adjoint(channels(case.kspace)), wanted)


def test_normal_is_the_adjoint_of_forward(case):
    samples = case.by_matrix(case.image, case.kspace.shape[1:])
    wanted = case.by_matrix(case.weighted(samples), case.shape, adjoint=True)
    close(case.acquisition.normal(channels(case.image)), wanted)


def test_unweighted_samples_all_count_alike(case):
    found = case.acquisition.unweighted()
    wanted = case.by_matrix(case.kspace, case.shape, adjoint=True)
    close(found.adjoint(channels(case.kspace)), wanted)
    samples = case.by_matrix(case.image, case.kspace.shape[1:])
    wanted = case.by_matrix(samples, case.shape, adjoint=True)
    close(found.normal(channels(case.image)), wanted)


@pytest.mark.slow
def test_gradients_pass_through_both_transforms(case):
    """The gradient of |A^H W A x|^2 / 2 is (A^H W A)^2 x."""

    def energy(image):
        gridded = case.acquisition.adjoint(case.acquisition.forward(image))
        return jnp.sum(gridded**2) / 2

    found = complex_of(jax.grad(energy)(channels(case.image)))
    wanted = case.image
    for _ in range(2):
        samples = case.by_matrix(wanted, case.kspace.shape[1:])
        wanted = case.by_matrix(case.weighted(samples), case.shape, adjoint=True)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.slow
def test_points_of_the_grid_are_those_of_cartesian_sampling(shape):
    rng = np.random.default_rng(0)
    mask = rng.random((1, *shape)) < 0.5
    points = np.argwhere(mask[0]) - np.array(shape) // 2
    image = jnp.asarray(rng.normal(size=(1, *shape, 2)), jnp.float32)
    trajectory = jnp.asarray(points, jnp.float32)[None]
    found = NonCartesian.on(trajectory, jnp.ones((1, len(points))), shape)
    cartesian = Acquisition(jnp.asarray(mask))
    samples = found.forward(image)
    np.testing.assert_allclose(samples, cartesian.forward(image)[mask][None], atol=3e-5)
    np.testing.assert_allclose(
        found.adjoint(samples), cartesian.normal(image), atol=3e-5
    )


def test_data_consistency_solves_the_damped_equations(case):
    """Against numpy's solution, as far as a few steps reach."""
    image, kspace = channels(case.image), channels(case.kspace)
    acquisition = case.acquisition.damped(1.0)
    found = complex_of(acquisition.consistent(image, acquisition.measured(kspace)))
    for n, (a, x, y) in enumerate(
        zip(case.matrices, case.image, case.kspace, strict=True)
    ):
        weights = np.tile(case.weights[n], len(a) // POINTS)
        normal = a.conj().T @ (weights[:, None] * a) + np.eye(a.shape[1])
        right = a.conj().T @ (weights * y.ravel()) + x.ravel()
        wanted = np.linalg.solve(normal, right).reshape(case.shape)
        left = np.linalg.norm(found[n] - wanted) / np.linalg.norm(x - wanted)
        assert left < 0.1


def test_a_consistent_image_stays_and_damping_holds_an_image(case):
    image, kspace = channels(case.image), channels(case.kspace)
    measured = case.acquisition.measured(case.acquisition.forward(image))
    found = case.acquisition.consistent(image, measured)
    np.testing.assert_allclose(found, image, atol=1e-4)
    held = case.acquisition.damped(1e6)
    found = held.consistent(image, held.measured(kspace))
    np.testing.assert_allclose(found, image, atol=1e-4)


@pytest.fixture(scope="module")
def radial(shared):
    """BART's radial scan: arrays of the golden, and the acquisition without weights."""
    golden = np.load(shared / "goldens" / "bart_radial.npz")
    trajectory = golden["trajectory"][:2].reshape(2, -1).T
    maps = channels(golden["maps"])[None]
    acquisition = NonCartesian.on(
        jnp.asarray(trajectory, jnp.float32)[None],
        jnp.ones((1, len(trajectory))),
        golden["image"].shape,
        maps,
    )
    kspace = golden["kspace"][0].reshape(len(trajectory), -1).T
    return golden, acquisition, channels(kspace)[None]


@pytest.mark.usefixtures("full_compilation")
def test_conjugate_gradients_are_those_of_bart(radial):
    """Up to BART's scale: `pics -l2 -r0.001 -i30` of the radial scan."""
    golden, acquisition, kspace = radial
    solve = jax.jit(functools.partial(sense.minimise, weight=1e-3, iterations=30))
    found, wanted = complex_of(solve(kspace, acquisition)[0]), golden["pics_l2"]
    scale = np.vdot(found, wanted).real / np.vdot(found, found).real
    difference = np.linalg.norm(scale * found - wanted) / np.linalg.norm(wanted)
    assert difference < 0.005
