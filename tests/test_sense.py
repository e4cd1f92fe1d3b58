"""CG-SENSE against a solver of numpy and against BART."""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax.acquisition import Acquisition
from kst_jax.birdcage import birdcage
from kst_jax.errors import InputError
from kst_jax.fourier import to_channels
from kst_jax.models.registry import build
from kst_jax.models.sense import SENSEConfig, minimise
from kst_jax.tokens import Batch
from tests.references import make_kst_tiny

SHAPE, COILS = (8, 6), 3

solve = jax.jit(minimise, static_argnums=3)


def channels(x):
    return to_channels(jnp.asarray(x, jnp.complex64))


def centred_dft(size):
    """The matrix of a centred orthonormal Fourier transform."""
    place = np.arange(size) - size // 2
    return np.exp(-2j * np.pi * np.outer(place, place) / size) / np.sqrt(size)


@pytest.fixture(scope="module")
def case():
    """Two slices: their acquisition as matrices, and as an operator; k-space."""
    rng = np.random.default_rng(0)
    maps = np.stack([birdcage(seed, SHAPE, COILS) for seed in (1, 2)])
    mask = rng.random((2, *SHAPE)) < 0.6
    kspace = rng.normal(size=(2, 2, COILS, *SHAPE))
    kspace = np.where(mask[:, None], kspace[0] + 1j * kspace[1], 0)
    transform = np.kron(*map(centred_dft, SHAPE))
    matrices = [
        np.concatenate([m.reshape(-1, 1) * transform * s.reshape(-1) for s in each])
        for m, each in zip(mask, maps, strict=True)
    ]
    acquisition = Acquisition(jnp.asarray(mask), channels(maps))
    return matrices, acquisition, kspace


@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_the_image_is_the_regularised_least_squares_solution(case, weight):
    matrices, acquisition, kspace = case
    found = solve(channels(kspace), acquisition, weight, 100)
    for image, a, y in zip(found, matrices, kspace, strict=True):
        normal = a.conj().T @ a + weight * np.eye(a.shape[1])
        wanted = np.linalg.solve(normal, a.conj().T @ y.ravel()).reshape(SHAPE)
        np.testing.assert_allclose(
            image[..., 0] + 1j * image[..., 1], wanted, atol=1e-4
        )


def test_the_network_solves_for_its_weight(case):
    _, acquisition, kspace = case
    batch = Batch(
        *[None] * 4, channels(kspace), acquisition.mask, maps=acquisition.maps
    )
    model = build(SENSEConfig(weight=0.3, iterations=7))
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    found = jax.jit(model.reconstruct)(params, batch)
    wanted = solve(channels(kspace), acquisition, 0.3, 7)
    np.testing.assert_allclose(found.image, wanted, atol=1e-5)
    fewer = solve(channels(kspace), acquisition, 0.3, 2)
    assert np.abs(found.image - fewer).max() > 1e-3


def test_one_coil_is_zero_filled_and_scaled():
    batch = make_kst_tiny.example()
    model = build(SENSEConfig(weight=0.25))
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    found = jax.jit(model.reconstruct)(params, batch).image
    wanted = batch.acquisition.adjoint(batch.kspace) / 1.25
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_gradient_of_the_weight_is_that_of_differences(case):
    _, acquisition, kspace = case

    @jax.jit
    def loss(weight):
        return (minimise(channels(kspace), acquisition, weight, 50) ** 2).sum()

    step = 0.01
    wanted = (loss(0.3 + step) - loss(0.3 - step)) / (2 * step)
    assert float(jax.grad(loss)(0.3)) == pytest.approx(float(wanted), rel=1e-2)


def test_an_empty_slice_stays_empty(case):
    _, acquisition, kspace = case
    kspace = channels(kspace).at[1].set(0)

    @jax.jit
    def loss(weight):
        image = minimise(kspace, acquisition, weight, 3)
        return (image**2).sum(), image

    (_, image), gradient = jax.value_and_grad(loss, has_aux=True)(0.3)
    assert (image[1] == 0).all()
    assert (image[0] != 0).all()
    assert np.isfinite(gradient)


@pytest.mark.parametrize("option", [{"weight": 0.0}, {"iterations": 0}])
def test_options_out_of_range_are_named(option):
    with pytest.raises(InputError, match=f"config.model.{next(iter(option))}"):
        SENSEConfig(**option)


def test_the_image_is_barts_with_its_maps(shared):
    golden = np.load(shared / "goldens/bart_brain.npz")
    with h5py.File(shared / "data/brain_vfa_multicoil.h5") as file:
        kspace = file["kspace"][1] * golden["mask"]
    mask = np.broadcast_to(golden["mask"], (1, *kspace.shape[1:]))
    acquisition = Acquisition(jnp.asarray(mask), channels(golden["maps"][None]))
    image = solve(channels(kspace[None]), acquisition, 0.001, 30)[0]
    found = np.asarray(image[..., 0] + 1j * image[..., 1], np.complex128)
    wanted = golden["pics_l2"]
    scale = np.vdot(found, wanted).real / np.vdot(found, found).real
    error = np.linalg.norm(scale * found - wanted) / np.linalg.norm(wanted)
    assert error < 0.01
