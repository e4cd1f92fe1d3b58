"""The loss against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from kst_jax.config import TrainConfig
from kst_jax.errors import InputError
from kst_jax.models.contract import Reconstruction, finished
from kst_jax.tokens import Batch
from kst_jax.training.averages import average_pool
from kst_jax.training.losses import loss


def mean_square(x):
    return np.mean(np.square(x))


def spectrum(x):
    return np.fft.fft2(x[..., 0] + 1j * x[..., 1], norm="ortho")


def batch_of(target, field=None):
    """A batch of which only the target matters."""
    mask = np.zeros(target.shape[:3], bool)
    empty = np.zeros((len(target), 0, 2), np.float32)
    return Batch(
        empty,
        empty,
        None,
        empty[..., 0],
        target * 0,
        mask,
        jnp.asarray(target),
        field=field,
    )


@pytest.fixture
def output():
    rng = np.random.default_rng(0)
    supervised = {
        "lr": rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32),
        "refined": rng.normal(size=(3, 3, 8, 8, 2)).astype(np.float32),
    }
    target = rng.normal(size=(3, 8, 8, 2)).astype(np.float32)
    arrays = {name: jnp.asarray(x) for name, x in supervised.items()}
    return Reconstruction(arrays["refined"][-1], arrays, arrays["refined"][0]), target


@pytest.mark.parametrize("domain", ["image", "both"])
@pytest.mark.parametrize(("stage", "keep"), [("LR", False), ("K", False), ("K", True)])
def test_loss_is_the_weighted_sum_of_errors(output, domain, stage, keep):
    reconstruction, target = output
    low = target.reshape(3, 4, 2, 4, 2, 2).mean(axis=(2, 4))
    last_lr = 0.9 if stage == "LR" or keep else 0.2
    expected = 0.0
    for name, goal, weights in (
        ("lr", low, [0.2, last_lr]),
        ("refined", target, [0.2, 0.2, 0.9]),
    ):
        for image, weight in zip(reconstruction.supervised[name], weights, strict=True):
            error = np.asarray(image) - goal
            terms = {
                "image": mean_square(error),
                # two real channels a point, as in the image domain
                "kspace": np.mean(np.abs(spectrum(error)) ** 2) / 2,
            }
            terms["both"] = terms["image"] + terms["kspace"]
            expected += weight * terms[domain]
    config = TrainConfig(
        domain=domain, layer_weight=0.2, last_weight=0.9, keep_lr_weight=keep
    )
    got = loss(reconstruction, batch_of(target), config, stage)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("error", ["absolute", "relative"])
def test_errors_of_other_networks(error):
    rng = np.random.default_rng(0)
    image, target = rng.normal(size=(2, 3, 8, 8, 2)).astype(np.float32)
    difference = image - target
    norms = [np.linalg.norm(x.reshape(3, -1), axis=1) for x in (difference, target)]
    expected = {
        "absolute": np.abs(difference).mean(),
        "relative": (norms[0] / norms[1]).mean(),
    }
    config = TrainConfig(error=error, domain="image", last_weight=1.0)
    got = loss(finished(jnp.asarray(image)), batch_of(target), config, "RM")
    np.testing.assert_allclose(got, expected[error], rtol=1e-5)


def similarity(images, targets, peaks):
    """Mean SSIM of the slices' magnitudes by scikit-image."""
    magnitudes = [np.linalg.norm(x, axis=-1).astype(float) for x in (images, targets)]
    return np.mean(
        [
            structural_similarity(t, p, data_range=peak)
            for p, t, peak in zip(*magnitudes, peaks, strict=True)
        ]
    )


@pytest.mark.parametrize("peak", [None, [5.0, 3.0, 9.0]])
def test_ssim_of_magnitudes_is_scikit_images(peak):
    """For each layer; the data range is a volume's peak, or else each slice's."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(3, 12, 10, 2)).astype(np.float32)
    images = target + rng.normal(0, 0.5, (2, *target.shape)).astype(np.float32)
    peaks = peak or np.linalg.norm(target, axis=-1).max((1, 2)).astype(float)
    first, last = (1 - similarity(image, target, peaks) for image in images)
    batch = batch_of(target)
    if peak:
        batch = batch.replace(peak=jnp.asarray(peak))
    output = Reconstruction(jnp.asarray(images[1]), {"image": jnp.asarray(images)})
    config = TrainConfig(error="ssim", domain="image", layer_weight=0.2)
    got = loss(output, batch, config, "RM")
    np.testing.assert_allclose(got, 0.2 * first + last, atol=1e-5)


@pytest.mark.parametrize("empty", [False, True])
def test_gradients_of_ssim_are_finite_where_the_magnitude_is_zero(empty):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(1, 8, 9, 2)).astype(np.float32) * (not empty)
    image = jnp.asarray(rng.normal(size=target.shape), jnp.float32).at[0, :4].set(0)
    config = TrainConfig(error="ssim", domain="image")

    @jax.jit
    @jax.value_and_grad
    def loss_of(image):
        return loss(finished(image), batch_of(target), config, "RM")

    value, gradient = loss_of(image)
    assert 0 < value < 2
    assert np.isfinite(gradient).all()
    assert (gradient[0, 4:] != 0).any()


def test_ssim_needs_its_window_and_the_image_domain():
    config = TrainConfig(error="ssim", domain="image")
    small = np.ones((1, 6, 8, 2), np.float32)
    with pytest.raises(InputError, match="7x7"):
        loss(finished(jnp.asarray(small)), batch_of(small), config, "RM")
    with pytest.raises(InputError, match=r"train\.domain.*'image' if train.error"):
        TrainConfig(error="ssim", domain="both")


def test_average_pool_over_unequal_factors():
    x = np.arange(2 * 6 * 4 * 2, dtype=np.float32).reshape(2, 6, 4, 2)
    pooled = average_pool(jnp.asarray(x), (2, 2))
    np.testing.assert_allclose(pooled[1, 1, 0], x[1, 3:6, :2].mean(axis=(0, 1)))


@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (5, 7), (3, 4)])
def test_average_pool_where_patches_end_within_pixels(rows, columns):
    """Each pixel divided into as many as there are patches: then these are equal."""
    x = np.random.default_rng(0).normal(size=(2, 6, 10, 2)).astype(np.float32)
    fine = x.repeat(rows, axis=1).repeat(columns, axis=2)
    wanted = fine.reshape(2, rows, 6, columns, 10, 2).mean(axis=(2, 4))
    pooled = average_pool(jnp.asarray(x), (rows, columns))
    np.testing.assert_allclose(pooled, wanted, atol=1e-5)


def test_only_the_field_counts_except_at_low_resolution():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 8, 8, 2)).astype(np.float32)
    image = target + rng.normal(size=target.shape).astype(np.float32)
    outside = image.copy()
    outside[:, :2] = outside[:, 6:] = outside[:, :, 0] = outside[:, :, 7] = 1e3
    config = TrainConfig(domain="image", last_weight=1.0)
    batch = batch_of(target, field=(4, 6))
    wanted = mean_square((image - target)[:, 2:6, 1:7])
    for seen in (image, outside):
        got = loss(finished(jnp.asarray(seen)), batch, config, "RM")
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    low = jnp.asarray(rng.normal(size=(1, 2, 4, 4, 2)), jnp.float32)
    got = loss(Reconstruction(low[0], {"lr": low}), batch, config, "LR")
    pooled = target.reshape(2, 4, 2, 4, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(got, mean_square(low[0] - pooled), rtol=1e-6)
