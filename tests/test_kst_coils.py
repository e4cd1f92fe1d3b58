"""The network on several coils, and without its attention."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import parallel, tokens
from kst_jax.birdcage import birdcage
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.patches import Layout
from tests.references import make_kst_tiny
from tests.test_kst import apply

SIZE = (12, 16)
MASK = np.broadcast_to(np.arange(16) % 3 == 1, SIZE)


def transform(function, x):
    axes = (-2, -1)
    x = function(np.fft.ifftshift(x, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(x, axes=axes)


def channels(x):
    return np.stack([x.real, x.imag], -1).astype(np.float32)


def scan(maps, patch=(1, 1)):
    """A slice of noise as the coils see it, undersampled, and the image."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=SIZE) + 1j * rng.normal(size=SIZE)
    kspace = channels(transform(np.fft.fft2, maps * image))
    layout = Layout.of(MASK, patch=patch)
    fields = tokens.tokenise(kspace, MASK, layout) | {"maps": channels(maps)}
    batch = tokens.batch_of([fields], patch=patch)
    return batch.replace(image=channels(image)[None]), image


def network(batch, **changes):
    config = dataclasses.replace(make_kst_tiny.CONFIG, patch=batch.patch, **changes)
    model = KSpaceTransformer(config)
    return model, make_kst_tiny.weights(model, batch)


def test_every_point_is_a_query_and_a_token_holds_all_coils():
    batch, _ = scan(birdcage(0, SIZE, 3))
    assert batch.value.shape == (1, MASK.sum(), 6)
    np.testing.assert_array_equal(batch.query[0], np.arange(MASK.size))
    _, params = network(batch)
    assert params["embed_token"]["hidden"]["kernel"].shape == (6, 8)
    assert params["embed_query"]["hidden"]["kernel"].shape == (2, 8)


def test_a_patch_holds_all_coils_of_all_its_points():
    batch, _ = scan(birdcage(0, SIZE, 3), (5, 1))
    assert batch.value.shape == (1, 3 * 5, 6 * 5)  # 12 rows are 3 patches
    np.testing.assert_array_equal(batch.query[0], np.arange(3 * 16))
    points = np.asarray(batch.value).reshape(3, 5, 5, 3, 2)  # patch, column, row, coil
    columns = np.flatnonzero(MASK[0])
    rows = np.moveaxis(points, 2, 1).reshape(15, 5, 3, 2)[:12]
    wanted = np.moveaxis(np.asarray(batch.kspace)[0][:, :, columns], 0, 2)
    np.testing.assert_array_equal(rows, wanted)
    _, params = network(batch)
    # both see which points are sampled, too
    assert params["embed_token"]["hidden"]["kernel"].shape == (30 + 5, 8)
    assert params["embed_query"]["hidden"]["kernel"].shape == (10 + 5, 8)


@pytest.mark.parametrize("patch", [(1, 1), (5, 3)])
@pytest.mark.parametrize(
    ("transformer", "hybrid"), [(True, False), (False, False), (False, True)]
)
@pytest.mark.slow
def test_layers_that_change_nothing_give_the_zero_filled_image(
    transformer, hybrid, patch
):
    """Consistency then takes a step of gradient descent from it, by numpy.

    It does so once more after attention in hybrid space.
    """
    maps = birdcage(1, SIZE, 3)
    batch, _ = scan(maps, patch)
    model, params = network(
        batch,
        transformer=transformer,
        hybrid=hybrid,
        residual_spectrum=0.1,
        refinement=False,
        hr_layers=1,
    )
    heads = [params["hr_decoder"]["head"]]
    if hybrid:
        heads.append(params["hr_decoder"]["hybrid"]["head"])
    for head in heads:
        output = head["mlp"]["output"]
        output["kernel"], output["bias"] = (0 * output[n] for n in ("kernel", "bias"))
    found = apply(model, params, batch)
    y = batch.kspace[0, ..., 0] + 1j * batch.kspace[0, ..., 1]

    def combined(kspace):
        return (maps.conj() * transform(np.fft.ifft2, kspace)).sum(0)

    wanted = combined(y)
    for _ in heads:
        wanted = combined(np.where(MASK, y, transform(np.fft.fft2, maps * wanted)))
    np.testing.assert_allclose(found.image[0], channels(wanted), atol=1e-5)


def test_one_coil_with_unit_maps_keeps_the_measured_values():
    batch, _ = scan(np.ones((1, *SIZE)))
    model, params = network(batch)
    found = apply(model, params, batch).supervised
    for images in (found["kspace"], found["refined"]):
        for image in np.asarray(images)[:, 0]:
            spectrum = transform(np.fft.fft2, image[..., 0] + 1j * image[..., 1])
            np.testing.assert_allclose(
                channels(spectrum)[MASK], batch.kspace[0, 0][MASK], atol=1e-4
            )


@pytest.mark.parametrize("patch", [(1, 1), (4, 1)])
@pytest.mark.slow
def test_devices_share_the_queries_of_several_coils(patch):
    batch, _ = scan(birdcage(2, SIZE, 2), patch)
    model, params = network(batch)
    wanted = apply(model, params, batch).image
    mesh = parallel.make_mesh(1, query_devices=4)
    shared = parallel.map_over_devices(
        lambda params, batch: (
            model.clone(query_axis=parallel.QUERY).reconstruct(params, batch).image
        ),
        mesh,
        (parallel.REPLICATED, parallel.SHARDED),
        parallel.SHARDED,
    )
    found = shared(parallel.replicate(params, mesh), parallel.shard(batch, mesh))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * jnp.abs(wanted).max())


def test_without_attention_only_the_decoder_is_left():
    batch = make_kst_tiny.example()
    model, params = network(batch, transformer=False)
    assert set(params) == {"embed_query", "hr_decoder"}
    assert set(params["hr_decoder"]) == {"mlp", "head", "refinement"}
    assert model.stages == ("K", "RM")
    KSTConfig(transformer=False).require_size((8, 8))  # needs no low-resolution grid


def test_without_attention_queries_do_not_see_each_other():
    batch = make_kst_tiny.example()
    model, params = network(
        batch, transformer=False, refinement=False, residual_spectrum=0.1
    )
    before = apply(model, params, batch).image
    one = np.array(batch.kspace)
    place = tuple(np.argwhere(np.asarray(batch.mask))[3])
    one[place] += 1.0
    after = apply(model, params, batch.replace(kspace=jnp.asarray(one))).image
    change = np.asarray(after - before)
    spectrum = transform(np.fft.fft2, change[..., 0] + 1j * change[..., 1])
    wanted = np.zeros(spectrum.shape, complex)
    wanted[place] = 1 + 1j
    np.testing.assert_allclose(spectrum, wanted, atol=1e-5)
