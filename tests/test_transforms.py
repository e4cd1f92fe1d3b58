"""Slices to images: crop, resize, augmentation, normalisation."""

import types

import numpy as np
import pytest

from kst_jax import fourier
from kst_jax.data import fourier as host
from kst_jax.data import transforms
from kst_jax.data_config import AugmentConfig, DataConfig
from kst_jax.errors import InputError


def augment(image, config, rng):
    return transforms.augment(image, transforms.draw_change(config, rng))


def image_of(shape=(20, 24), seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def test_host_and_device_transforms_agree():
    image = image_of((9, 12))
    channels = np.stack([image.real, image.imag], -1)
    spectrum = host.fft2c(image)
    np.testing.assert_allclose(
        fourier.fft2c(channels), np.stack([spectrum.real, spectrum.imag], -1), atol=1e-5
    )
    np.testing.assert_allclose(host.ifft2c(spectrum), image, atol=1e-6)


@pytest.mark.parametrize(("n", "m", "start"), [(10, 4, 3), (11, 4, 3), (10, 5, 2)])
def test_crop_starts_where_fastmri_starts(n, m, start):
    row = np.arange(n)
    cropped = transforms.centre_crop(np.stack([row] * n), (m, m))
    np.testing.assert_array_equal(cropped[0], row[start : start + m])


@pytest.mark.parametrize("shape", [(13, 20), (14, 21), (20, 9)])
def test_padding_and_cropping_undo_each_other(shape):
    image = image_of(shape)
    large = transforms.field_of_view(
        image, DataConfig(size=(8, 8), crop=(24, 25), pad=True), "x"
    )
    assert large.shape == (24, 25)
    np.testing.assert_array_equal(transforms.centre_crop(large, shape), image)


def test_a_slice_smaller_than_the_crop_is_refused():
    with pytest.raises(InputError, match=r"a\.h5, slice 3.*\(20, 24\).*data\.pad"):
        transforms.field_of_view(image_of(), DataConfig(size=(32, 32)), "a.h5, slice 3")


@pytest.mark.parametrize("old", [(32, 40), (33, 41)])
@pytest.mark.parametrize("new", [(16, 20), (15, 17)])
def test_fourier_resize_keeps_smooth_images(old, new):
    """A slow wave, sampled on the coarse grid of the same field of view."""

    def wave(shape):
        rows, columns = ((np.arange(n) - n // 2) / n for n in shape)
        angle = 2 * np.pi * (2 * rows[:, None] - 3 * columns[None, :])
        return (1.5 + np.exp(1j * angle)).astype(np.complex64)

    np.testing.assert_allclose(
        transforms.fourier_resize(wave(old), new), wave(new), atol=1e-4
    )


@pytest.mark.parametrize("old", [(32, 40), (33, 41)])
@pytest.mark.parametrize("new", [(16, 20), (15, 17), (16, 17), (31, 39), (30, 38)])
def test_fourier_resize_keeps_real_images_real(old, new):
    image = image_of(old).real.astype(np.complex64)
    low = transforms.fourier_resize(image, new)
    assert np.linalg.norm(low.imag) < 1e-6 * np.linalg.norm(low)


def test_the_plain_resize_keeps_one_sign_of_the_highest_frequency():
    image = image_of((12, 12))
    centred = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    low = transforms.fourier_resize(image, (8, 6), "plain")
    found = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(low), norm="ortho"))
    wanted = centred[2:10, 3:9] * (48 / 144) ** 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-5)


EVERYTHING = np.ones((20, 24), bool)


@pytest.mark.parametrize("by", ["target", "measured"])
def test_normalisation_can_be_undone(by):
    image = (1e-4 * image_of() + (2e-4 - 1e-4j)).astype(np.complex64)
    channels, kspace, done = transforms.normalise(image, EVERYTHING, by, "x")
    mean, std = (np.array([v], np.float32) for v in (done.mean, done.std))
    back = transforms.denormalise(channels[None], mean, std)[0]
    np.testing.assert_allclose(back[..., 0] + 1j * back[..., 1], image, rtol=1e-3)
    np.testing.assert_allclose(kspace, fourier.fft2c(channels), atol=1e-5)


def test_normalisation_by_the_target_is_a_z_score():
    image = (1e-4 * image_of() + (2e-4 - 1e-4j)).astype(np.complex64)
    channels, _, _ = transforms.normalise(image, EVERYTHING, "target", "x")
    assert channels.mean() == pytest.approx(0, abs=1e-5)
    assert channels.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("unit", [1e-36, 1e-22, 1e15, 1e30])
def test_units_do_not_matter_to_a_z_score(unit):
    image = image_of() + (2 - 1j)
    expected, _, _ = transforms.normalise(image, EVERYTHING, "target", "x")
    found, _, done = transforms.normalise(
        (unit * image).astype(np.complex64), EVERYTHING, "target", "x"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    channels = np.stack([image.real, image.imag]).astype(np.float64)
    assert done.std == pytest.approx(unit * channels.std(), rel=1e-5)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 254.0, 1e9])
@pytest.mark.parametrize("shape", [(7, 5), (64, 64), (200, 130)])
def test_a_z_score_of_usual_values_is_numpys_to_the_last_bit(unit, shape):
    image = (unit * (np.abs(image_of(shape)) ** 3 - 0.2j)).astype(np.complex64)
    mask = np.ones(shape, bool)
    found, _, done = transforms.normalise(image, mask, "target", "x")
    channels = np.stack([image.real, image.imag], -1)
    mean, std = channels.mean(dtype=np.float64), channels.std()
    assert (done.mean, done.std) == (float(mean), float(std))
    np.testing.assert_array_equal(found, (channels - np.float32(mean)) / std)


def test_values_too_large_to_subtract_their_mean_are_refused():
    image = image_of()
    image[3, 4] = 3e38
    image[5, 6] = -3e38
    with pytest.raises(InputError, match=r"a\.h5: .*too large for float32"):
        transforms.normalise(image, EVERYTHING, "target", "a.h5")


@pytest.mark.parametrize("unit", [1e-22, 1.0, 1e15])
def test_normalisation_by_the_measurement_makes_the_zero_filled_image_unit(unit):
    image = (unit * image_of()).astype(np.complex64)
    mask = np.random.default_rng(0).random(image.shape) < 0.3
    _, kspace, done = transforms.normalise(image, mask, "measured", "x")
    assert done.mean == 0
    zero_filled = host.ifft2c(np.where(mask, kspace[..., 0] + 1j * kspace[..., 1], 0))
    assert np.mean(np.abs(zero_filled) ** 2) == pytest.approx(2, rel=1e-4)


def test_a_slice_of_which_nothing_was_measured_is_refused():
    image = np.zeros((20, 24), np.complex64)
    with pytest.raises(InputError, match=r"a\.h5: every measured value is zero"):
        transforms.normalise(image, EVERYTHING, "measured", "a.h5")


def test_simulated_scans_get_a_smooth_phase_and_keep_their_magnitude():
    image = np.abs(image_of((64, 48))).astype(np.complex64)
    config = AugmentConfig(phase=0.5)
    scan = transforms.simulate_scan(image, config, np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(scan), np.abs(image), rtol=1e-5)
    turn = scan / image
    assert np.angle(turn).std() == pytest.approx(0.5, rel=0.05)
    assert np.abs(np.diff(turn, axis=0)).max() < 0.3
    spectrum = host.fft2c(scan)[1:, 1:]  # without the unpaired frequencies
    mirrored = spectrum[::-1, ::-1].conj()
    assert np.linalg.norm(spectrum - mirrored) > 0.1 * np.linalg.norm(spectrum)


def test_simulated_scans_get_complex_noise_of_the_peaks_share():
    image = np.full((200, 200), 5, np.complex64)
    config = AugmentConfig(noise=0.02)
    noise = transforms.simulate_scan(image, config, np.random.default_rng(0)) - image
    assert noise.real.std() == pytest.approx(0.1, rel=0.02)
    assert noise.imag.std() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("value", [0, 3 + 0j])
def test_a_constant_slice_is_refused(value):
    flat = np.full((8, 8), value, np.complex64)
    if value:
        flat = flat + 3j  # equal real and imaginary parts
    mask, flat = np.ones(flat.shape, bool), flat.astype(np.complex64)
    with pytest.raises(InputError, match="nothing to reconstruct"):
        transforms.normalise(flat, mask, "target", "a.h5")


def test_augmentation_is_off_by_default():
    image = image_of()
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(augment(image, AugmentConfig(), rng), image)


def test_flips():
    image, rng = image_of(), np.random.default_rng(0)
    config = AugmentConfig(flip_rows=True, flip_columns=True)
    seen = {augment(image, config, rng).tobytes() for _ in range(60)}
    wanted = (image, image[::-1], image[:, ::-1], image[::-1, ::-1])
    assert seen == {x.tobytes() for x in wanted}


def test_rotation_and_scaling_go_about_the_centre():
    image = np.zeros((41, 41), np.complex64)
    image[18:23, 18:23] = 1 + 1j
    config = AugmentConfig(rotation=179, scaling=0.3)
    for seed in range(10):
        out = augment(image, config, np.random.default_rng(seed))
        weight = np.abs(out) / np.abs(out).sum()
        centre = [(weight.sum(axis=1 - axis) @ np.arange(41)) for axis in (0, 1)]
        np.testing.assert_allclose(centre, 20, atol=0.1)
        np.testing.assert_allclose(out.real, out.imag)


def drawing(end):
    """A generator that draws the least (0) or the largest (1) of a range."""
    return types.SimpleNamespace(uniform=lambda *ends: ends[end])


@pytest.mark.parametrize(("end", "quarters"), [(0, -1), (1, 1)])
def test_the_largest_rotation_is_the_one_asked_for(end, quarters):
    image = image_of((21, 21))
    out = augment(image, AugmentConfig(rotation=90), drawing(end))
    inside = np.s_[1:-1, 1:-1]  # at the edge, rounding may ask for what is outside
    np.testing.assert_allclose(out[inside], np.rot90(image, quarters)[inside], 1e-6)


@pytest.mark.parametrize(("end", "size"), [(0, 0.8), (1, 1.2)])
def test_the_largest_scaling_is_the_one_asked_for(end, size):
    def blob(radius):
        rows, columns = np.mgrid[-30:31, -30:31] / radius
        return np.exp(-(rows**2 + columns**2) / 2).astype(np.complex64)

    out = augment(blob(6), AugmentConfig(scaling=0.2), drawing(end))
    # Between its samples, the image is taken for straight lines.
    np.testing.assert_allclose(out, blob(6 * size), atol=0.01)
    assert out.sum().real == pytest.approx(size**2 * blob(6).sum().real, rel=1e-3)


@pytest.mark.parametrize(("end", "power"), [(0, 0.5), (1, 1.5)])
def test_the_largest_change_of_contrast_is_the_one_asked_for(end, power):
    image = image_of()
    out = augment(image, AugmentConfig(intensity=0.5), drawing(end))
    magnitude, peak = np.abs(image), np.abs(image).max()
    np.testing.assert_allclose(np.abs(out), peak * (magnitude / peak) ** power, 1e-5)


def test_magnitudes_turn_as_the_parts_of_complex_images_do():
    image, config = image_of(), AugmentConfig(rotation=30, scaling=0.2)

    def turned(image):
        return augment(image, config, np.random.default_rng(3))

    real = turned(image.real.astype(np.complex64))
    assert real.dtype == np.complex64
    assert not real.imag.any()
    np.testing.assert_array_equal(real.real, turned(image).real)


def test_contrast_keeps_phase_and_order():
    image = image_of()
    out = augment(image, AugmentConfig(intensity=0.5), np.random.default_rng(1))
    np.testing.assert_allclose(np.angle(out), np.angle(image), atol=1e-5)
    order = np.argsort(np.abs(image), axis=None)
    assert (np.diff(np.abs(out).ravel()[order]) >= -1e-6).all()
    assert not np.allclose(out, image)


CHANGES = {
    "flips": AugmentConfig(flip_rows=True, flip_columns=True),
    "rotation": AugmentConfig(rotation=30),
    "scaling": AugmentConfig(scaling=0.3),
    "contrast": AugmentConfig(intensity=0.5),
    "all": AugmentConfig(True, True, 30, 0.3, 0.5),
}


@pytest.mark.parametrize("config", CHANGES.values(), ids=CHANGES)
def test_a_real_image_stays_real(config):
    """As a change of an image's phase would make it complex."""
    image = image_of((24, 20)).real.astype(np.complex64)
    view = DataConfig(size=(16, 16), crop=(22, 26), pad=True)
    rng = np.random.default_rng(0)
    for _ in range(8):
        changed = augment(transforms.field_of_view(image, view, "x"), config, rng)
        assert changed.any()
        assert not changed.imag.any()
        everything = np.ones(changed.shape, bool)
        channels, _, done = transforms.normalise(changed, everything, "target", "x")
        mean, std = (np.array([v], np.float32) for v in (done.mean, done.std))
        back = transforms.denormalise(channels[None], mean, std)[0]
        assert np.abs(back[..., 1]).max() < 1e-6 * np.abs(back[..., 0]).max()
        spectrum = host.fft2c(changed[:21, :21])  # odd: each frequency has its mirror
        mirrored = spectrum[::-1, ::-1].conj()
        np.testing.assert_allclose(spectrum, mirrored, atol=1e-5)
