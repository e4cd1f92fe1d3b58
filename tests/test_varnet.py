"""E2E-VarNet against numpy, scipy and a plain loop; sizes against fastMRI's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from kst_jax.birdcage import birdcage
from kst_jax.errors import InputError
from kst_jax.fourier import ifft2c, to_channels
from kst_jax.models.registry import build
from kst_jax.models.varnet import (
    NormalisedUNet,
    Sensitivities,
    VarNetConfig,
    calibration_region,
)
from kst_jax.tokens import Batch

# Neither is a multiple of 4, one is odd, and padding differs from side to side.
SHAPE, COILS = (10, 13), 3
SMALL = {
    "cascades": 2,
    "features": 2,
    "poolings": 1,
    "sensitivity_features": 2,
    "sensitivity_poolings": 1,
}


def batch_of(kspace, mask, maps=None):
    return Batch(*[None] * 4, jnp.asarray(kspace), jnp.asarray(mask), maps=maps)


def lines(shape, columns):
    mask = np.zeros(shape, bool)
    mask[..., columns] = True
    return mask


@pytest.fixture(scope="module")
def scan():
    """Two slices of three coils, sampled in columns; two others are empty."""
    rng = np.random.default_rng(0)
    mask = np.stack([lines(SHAPE, [0, 4, 5, 6, 7, 10]), lines(SHAPE, [2, 5, 6, 12])])
    maps = np.stack([birdcage(seed, SHAPE, COILS) for seed in (1, 2)])
    kspace = rng.normal(size=(2, COILS, *SHAPE, 2)).astype(np.float32)
    kspace = np.where(mask[:, None, :, :, None], kspace, 0)
    batch = batch_of(kspace, mask, to_channels(jnp.asarray(maps)))
    return batch.replace(empty=jnp.asarray(lines(mask.shape, [1, 11])))


def random_parameters(model, *inputs, scale=0.3):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(
        lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), shapes
    )


def as_complex(x):
    return np.asarray(x[..., 0] + 1j * x[..., 1])


def spectrum_of(image):
    axes = (-2, -1)
    image = np.fft.ifftshift(image, axes=axes)
    return np.fft.fftshift(np.fft.fft2(image, norm="ortho"), axes=axes)


def image_of(spectrum):
    axes = (-2, -1)
    spectrum = np.fft.ifftshift(spectrum, axes=axes)
    return np.fft.fftshift(np.fft.ifft2(spectrum, norm="ortho"), axes=axes)


@pytest.mark.parametrize(
    ("config", "coils", "wanted"),
    [
        (VarNetConfig(), 1, 29_452_068),
        (VarNetConfig(), 3, 29_936_966),
        (VarNetConfig(maps="given"), 3, 29_452_068),
    ],
)
def test_parameters_are_as_many_as_published(config, coils, wanted):
    kspace, mask = np.ones((1, coils, 32, 32, 2), np.float32), np.ones((1, 32, 32))
    batch = batch_of(kspace, mask > 0, kspace)
    if coils == 1:
        batch = batch_of(kspace[:, 0], mask > 0)
    shapes = jax.eval_shape(build(config).init, jax.random.key(0), batch)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == wanted


def convolved(x_HxWxC, layer):
    correlate = functools.partial(signal.correlate2d, mode="same")
    kernels = np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)
    channels = np.moveaxis(x_HxWxC, -1, 0)
    sums = [sum(map(correlate, channels, kernel)) for kernel in kernels]
    return np.stack(sums, -1) + layer.get("bias", 0)


def normalised(x_HxWxC):
    x = x_HxWxC - x_HxWxC.mean((0, 1))
    x = x / np.sqrt((x**2).mean((0, 1)) + 1e-5)
    return np.where(x > 0, x, 0.2 * x)


def doubled(x_HxWxC, layer):
    """A transposed convolution, 2x2 with stride 2."""
    H, W, C = x_HxWxC.shape
    kernel = np.asarray(layer["kernel"]).reshape(C, 2, 2, -1)
    result = np.zeros((2 * H, 2 * W, kernel.shape[-1]))
    for i, j in np.ndindex(2, 2):
        result[i::2, j::2] = x_HxWxC @ kernel[:, i, j]
    return normalised(result)


def normalised_unet(image_HxWx2, params):
    poolings = sum(name.startswith("Enlarge") for name in params)
    mean, deviation = image_HxWx2.mean((0, 1)), image_HxWx2.std((0, 1), ddof=1)
    missing = [-n % 2**poolings for n in SHAPE]
    inner = tuple(
        slice(m // 2, m // 2 + n) for m, n in zip(missing, SHAPE, strict=True)
    )
    x = np.zeros((*np.add(SHAPE, missing), 2))
    x[inner] = (image_HxWx2 - mean) / deviation

    def block(x, number):
        for layer in ("Conv_0", "Conv_1"):
            x = normalised(convolved(x, params[f"ConvBlock_{number}"][layer]))
        return x

    skipped = []
    for n in range(poolings):
        skipped.append(block(x, n))
        x = sum(skipped[-1][i::2, j::2] for i, j in np.ndindex(2, 2)) / 4
    x = block(x, poolings)
    for n in range(poolings):
        x = doubled(x, params[f"Enlarge_{n}"]["Dense_0"])
        x = block(np.concatenate([x, skipped.pop()], -1), poolings + 1 + n)
    return convolved(x, params["Conv_0"])[inner] * deviation + mean


def test_cascades_are_the_update_by_numpy(scan):
    """Two cascades with given maps, U-Nets and Fourier transforms written out."""
    model = build(VarNetConfig(**SMALL, maps="given"))
    params = random_parameters(model, scan)
    got = jax.jit(model.reconstruct)(params, scan).image
    maps, kspace = as_complex(scan.maps), as_complex(scan.kspace)
    for b in range(2):
        spectrum = kspace[b]
        for n in range(2):
            layer = jax.tree.map(lambda x, n=n: x[n], params["cascades"])
            image = (maps[b].conj() * image_of(spectrum)).sum(0)
            image = np.stack([image.real, image.imag], -1)
            image = normalised_unet(image, layer["NormalisedUNet_0"])
            change = spectrum_of(maps[b] * as_complex(image))
            misfit = np.where(scan.mask[b] | scan.empty[b], spectrum - kspace[b], 0)
            spectrum = spectrum - layer["weight"] * misfit - change
        wanted = (maps[b].conj() * image_of(spectrum)).sum(0)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(as_complex(got[b]), wanted, atol=1e-4 * scale)


@pytest.mark.parametrize(("columns", "middle"), [([2, 5, 9], 1.0), ([2, 6], 0.5)])
def test_one_coil_without_a_network_stays_as_measured(scan, columns, middle):
    """But for the middle of k-space: U-Nets without parameters give the image's mean.

    The first cascade takes it away, and the second gives half of it back.
    """
    mask = lines((2, *SHAPE), columns)
    kspace = np.where(mask[..., None], scan.kspace[:, 0] + 1, 0)
    batch = batch_of(kspace, mask)
    model = build(VarNetConfig(**SMALL))
    params = random_parameters(model, batch, scale=0.0)
    params["cascades"]["weight"] = np.float32([1.0, 0.5])
    got = jax.jit(model.reconstruct)(params, batch).image
    kspace[:, SHAPE[0] // 2, SHAPE[1] // 2] *= middle
    np.testing.assert_allclose(got, ifft2c(kspace), atol=1e-5)


def test_learned_maps_replace_the_batchs(scan):
    """A cascade without parameters takes no more than the mean off the image."""
    model = build(VarNetConfig(**{**SMALL, "cascades": 1}))
    params = random_parameters(model, scan)
    params["cascades"] = jax.tree.map(np.zeros_like, params["cascades"])
    got = jax.jit(model.reconstruct)(params, scan).image
    sensitivities = {"params": params["sensitivities"]}
    network = jax.jit(Sensitivities(model.config).apply)
    maps = network(sensitivities, scan.kspace, scan.mask)
    seen = (as_complex(maps).conj() * image_of(as_complex(scan.kspace))).sum(1)
    wanted = seen - seen.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(as_complex(got), wanted, atol=1e-4)


def test_maps_have_unit_norm_and_are_of_the_centre_alone(scan):
    model = Sensitivities(VarNetConfig(**SMALL))
    params = random_parameters(model, scan.kspace, scan.mask)
    apply = jax.jit(model.apply)
    maps = apply({"params": params}, scan.kspace, scan.mask)
    norm = np.linalg.norm(as_complex(maps), axis=1)
    np.testing.assert_allclose(norm, 1, atol=1e-4)
    centre = np.stack([lines(SHAPE, [4, 5, 6, 7]), lines(SHAPE, [5, 6])])
    kspace = np.where(centre[:, None, ..., None], scan.kspace, 7.0)
    again = apply({"params": params}, kspace, scan.mask)
    np.testing.assert_allclose(again, maps, atol=1e-5)


def test_each_coils_map_is_the_network_of_its_image(scan):
    model = Sensitivities(VarNetConfig(**{**SMALL, "sensitivity_poolings": 2}))
    params = random_parameters(model, scan.kspace, scan.mask)
    got = as_complex(jax.jit(model.apply)({"params": params}, scan.kspace, scan.mask))
    for b, columns in enumerate(([4, 5, 6, 7], [5, 6])):
        centre = np.where(lines(SHAPE, columns), as_complex(scan.kspace[b]), 0)
        images = image_of(centre)
        seen = [
            as_complex(
                normalised_unet(
                    np.stack([x.real, x.imag], -1), params["NormalisedUNet_0"]
                )
            )
            for x in images
        ]
        wanted = np.stack(seen) / np.linalg.norm(seen, axis=0)
        np.testing.assert_allclose(got[b], wanted, atol=1e-3)


def rectangle(mask):
    """The largest rectangle about the middle, by trying all."""
    H, W = mask.shape
    best, wanted = 0, np.ones_like(mask)
    for height in range(1, H // 2 + 2):
        for width in range(1, W // 2 + 2):
            rows = slice(max(H // 2 - height, 0), H // 2 + height)
            columns = slice(max(W // 2 - width, 0), W // 2 + width)
            block = mask[rows, columns]
            if block.all() and block.size > best:
                best, wanted = block.size, np.zeros_like(mask)
                wanted[rows, columns] = True
    return wanted


@pytest.mark.parametrize("shape", [(6, 12), (7, 13), (9, 8)])
@pytest.mark.parametrize("missing", [0.02, 0.1, 0.3])
def test_calibration_region_is_the_largest_rectangle(shape, missing):
    masks = np.random.default_rng(0).random((40, *shape)) > missing
    masks[0], masks[1] = True, False
    got = jax.jit(calibration_region)(masks)
    wanted = np.stack([rectangle(mask) for mask in masks])
    # Of several as large either will do.
    np.testing.assert_array_equal(got.sum((1, 2)), wanted.sum((1, 2)))
    found = ~np.asarray(got) | masks
    assert found[wanted.sum((1, 2)) < masks[0].size].all()
    alike = (got == wanted).all((1, 2)).mean()
    assert alike > 0.7


def fastmri_region(columns):
    """The columns that fastMRI takes, for masks with a gap."""
    middle = len(columns) // 2
    left = right = 0
    while columns[middle - 1 - left]:
        left += 1
    while columns[middle + right]:
        right += 1
    count = max(2 * min(left, right), 1)
    start = (len(columns) - count + 1) // 2
    return np.isin(np.arange(len(columns)), np.arange(start, start + count))


def test_calibration_lines_are_fastmris():
    rng = np.random.default_rng(0)
    columns = rng.random((30, 16)) < 0.4
    columns[:, 0] = columns[:, -1] = False
    columns[:, 7:9] = True
    columns[:10, 6:11] = columns[10:20, 3:10] = True
    masks = np.broadcast_to(columns[:, None], (30, 5, 16))
    got = jax.jit(calibration_region)(masks)
    wanted = np.stack([fastmri_region(line) for line in columns])
    np.testing.assert_array_equal(got, np.broadcast_to(wanted[:, None], got.shape))


def test_an_empty_image_stays_empty_with_finite_gradients():
    model = NormalisedUNet(2, 1, jnp.float32)
    image = jnp.zeros((1, 6, 5, 2))
    params = random_parameters(model, image)

    @jax.jit
    def apply(image):
        found, backward = jax.vjp(lambda x: model.apply({"params": params}, x), image)
        return found, backward(found)[0]

    found, gradient = apply(image)
    np.testing.assert_allclose(found, 0, atol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(scan):
    """Nor is the gradient of any parameter zero."""

    def gradient(remat):
        model = build(VarNetConfig(**SMALL, remat=remat))
        params = random_parameters(model, scan)

        @jax.jit
        @jax.grad
        def of(params):
            return (model.reconstruct(params, scan).image ** 2).mean()

        return jax.tree.leaves(of(params))

    for x, y, z in zip(*map(gradient, ("none", "blocks", "layers")), strict=True):
        assert np.abs(x).max() > 0
        np.testing.assert_allclose(y, x, atol=1e-4 * np.abs(x).max())
        np.testing.assert_allclose(z, x, atol=1e-4 * np.abs(x).max())


def test_options_out_of_range_are_named():
    with pytest.raises(InputError, match=r"config\.model\.maps=.*learned, given"):
        VarNetConfig(maps="espirit")
    with pytest.raises(InputError, match=r"config\.model\.remat"):
        VarNetConfig(remat="some")
    with pytest.raises(InputError, match=r"config\.model\.cascades=0"):
        VarNetConfig(cascades=0)
    with pytest.raises(InputError, match=r"\(16, 16\).*above 16"):
        VarNetConfig().require_size((16, 16))
    VarNetConfig().require_size((16, 17))
