import jax
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kst_jax import metrics
from kst_jax.errors import InputError
from tests.conftest import AUTHORS

pytestmark = pytest.mark.usefixtures("full_compilation")

SHAPES = [(2, 16, 16), (3, 7, 21), (2, 33, 50), (1, 160, 92)]
PER_SLICE = [metrics.psnr, metrics.ssim]
PER_VOLUME = [metrics.volume_nmse, metrics.volume_psnr, metrics.volume_ssim]
jitted = {metric: jax.jit(metric) for metric in PER_SLICE + PER_VOLUME}


def slices(shape, scale=1.0, offset=0.0, noise=0.05, seed=0):
    """A noisy and a clean stack whose slices differ in range, float32."""
    rng = np.random.default_rng(seed)
    target = np.cumsum(np.cumsum(rng.normal(size=shape), axis=1), axis=2)
    target -= target.min(axis=(1, 2), keepdims=True)
    target *= np.arange(1, shape[0] + 1)[:, None, None] / target.max()
    target = scale * (target + offset)
    pred = target + scale * noise * rng.normal(size=shape)
    return pred.astype(np.float32), target.astype(np.float32)


def doubles(*stacks):
    return [stack.astype(np.float64) for stack in stacks]


def paper(pred, target):
    """The paper's metrics of each slice through scikit-image, in float64."""
    psnr, ssim = [], []
    for p, t in zip(*doubles(pred, target), strict=True):
        data_range = t.max() - t.min()
        psnr.append(peak_signal_noise_ratio(t, p, data_range=data_range))
        ssim.append(structural_similarity(t, p, data_range=data_range))
    return np.array(psnr), np.array(ssim)


def fastmri(pred, target):
    """fastMRI's published definitions in numpy, float64."""
    p, t = doubles(pred, target)
    peak = t.max()
    nmse = np.linalg.norm(t - p) ** 2 / np.linalg.norm(t) ** 2
    psnr = 10 * np.log10(peak**2 / np.mean((t - p) ** 2))
    ssim = [
        structural_similarity(a, b, data_range=peak) for a, b in zip(t, p, strict=True)
    ]
    return nmse, psnr, np.mean(ssim)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
@pytest.mark.parametrize("noise", [0.3, 0.001])
def test_equal_to_scikit_image_and_fastmri(shape, scale, noise):
    pred, target = slices(shape, scale, noise=noise)
    got = [jitted[metric](pred, target) for metric in PER_SLICE]
    assert [value.shape for value in got] == [shape[:1], shape[:1]]
    np.testing.assert_allclose(got, paper(pred, target), rtol=0, atol=1e-5)

    pred, target = slices(shape, scale, offset=0.5, noise=noise)
    got = [jitted[metric](pred, target) for metric in PER_VOLUME]
    assert [value.shape for value in got] == [(), (), ()]
    np.testing.assert_allclose(got, fastmri(pred, target), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-5, 1e4])
def test_an_offset_a_hundred_times_the_range_costs_no_digits(scale):
    pred, target = slices((2, 33, 50), scale, offset=100)
    got = [jitted[metric](pred, target) for metric in PER_SLICE]
    np.testing.assert_allclose(got, paper(pred, target), rtol=0, atol=1e-5)


def test_a_unit_whose_square_underflows_float32_changes_nothing():
    pred, target = slices((2, 16, 16))
    for metric in PER_SLICE + PER_VOLUME:
        tiny = jitted[metric](pred * np.float32(1e-25), target * np.float32(1e-25))
        np.testing.assert_allclose(tiny, jitted[metric](pred, target), rtol=1e-5)


def test_per_slice_and_per_volume_are_different_conventions():
    pred, target = slices((3, 33, 50), offset=1)
    per_slice = np.mean(metrics.psnr(pred, target))
    assert abs(metrics.volume_psnr(pred, target) - per_slice) > 1
    per_slice = np.mean(metrics.ssim(pred, target))
    assert abs(metrics.volume_ssim(pred, target) - per_slice) > 0.01


def test_per_slice_metrics_do_not_see_the_other_slices():
    pred, target = slices((3, 16, 16))
    for metric in PER_SLICE:
        alone = [jitted[metric](pred[i : i + 1], target[i : i + 1]) for i in range(3)]
        together = jitted[metric](pred, target)
        np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-6)


def test_a_perfect_reconstruction():
    _, target = slices((2, 16, 16), scale=1e4)
    assert np.all(np.isposinf(metrics.psnr(target, target)))
    assert np.all(np.asarray(metrics.ssim(target, target)) == 1)
    assert metrics.volume_nmse(target, target) == 0
    assert np.isposinf(metrics.volume_psnr(target, target))
    assert metrics.volume_ssim(target, target) == 1


def test_a_constant_slice_is_undefined_and_spoils_only_itself():
    pred, target = slices((2, 16, 16))
    target[0] = 3.0
    for stack in (pred, target):
        for metric in PER_SLICE:
            value = np.asarray(metric(stack, target))
            assert np.isnan(value[0])
            assert not np.isnan(value[1])


def test_an_empty_volume_is_undefined():
    pred, target = slices((2, 16, 16))
    for metric in PER_VOLUME:
        assert np.isnan(metric(pred, np.zeros_like(target)))


@pytest.mark.parametrize("shape", [(1, 6, 20), (1, 20, 6)])
def test_ssim_needs_room_for_its_window(shape):
    pred, target = np.ones(shape, np.float32), np.ones(shape, np.float32)
    for metric in (metrics.ssim, metrics.volume_ssim):
        with pytest.raises(InputError, match=f"{shape[1]}x{shape[2]} are too small"):
            metric(pred, target)


@pytest.mark.parametrize("metric", PER_SLICE + PER_VOLUME)
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 16, 17), (16, 16)])
def test_shapes_that_do_not_match_are_refused(metric, shape):
    with pytest.raises(InputError, match="cannot be compared"):
        metric(np.ones(shape), np.ones((2, 16, 16)))


def test_only_stacks_are_compared():
    with pytest.raises(InputError, match="slices, height, width"):
        metrics.psnr(np.ones((16, 16)), np.ones((16, 16)))


def test_equal_to_the_authors_numbers():
    with np.load(AUTHORS) as golden:
        pred, target = golden["out/RM/hr_refined_images"][-1], golden["image"]
        psnr_sum, ssim_sum = golden["out/psnr_sum"], golden["out/ssim_sum"]
    pred, target = (np.linalg.norm(image, axis=-1) for image in (pred, target))
    assert np.sum(metrics.psnr(pred, target)) == pytest.approx(psnr_sum, abs=1e-4)
    assert np.sum(metrics.ssim(pred, target)) == pytest.approx(ssim_sum, abs=1e-5)
