"""What an image does not know: predicted deviations, ensembles, their calibration."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import stats

from kst_jax import parallel
from kst_jax.config import Config, TrainConfig
from kst_jax.data import opening, pipeline
from kst_jax.data_config import CoilsConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.eval_config import EvalConfig
from kst_jax.evaluation.scoring import make_scorer
from kst_jax.evaluation.uncertainty import HALF_WIDTH, Uncertainty, area
from kst_jax.mask_config import MaskConfig
from kst_jax.models import ensemble
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.registry import build
from kst_jax.training import losses
from tests.references import make_kst_tiny
from tests.test_kst import apply, tiny

RNG = np.random.default_rng(0)
TARGET = RNG.uniform(0.5, 1.0, (4, 32, 32))
DEVIATION = RNG.uniform(0.01, 0.1, TARGET.shape)
IMAGE = TARGET + DEVIATION * RNG.normal(size=TARGET.shape)


def magnitude(x):
    return np.hypot(x[..., 0], x[..., 1])


def added(deviation, scale=1.0, image=IMAGE, target=TARGET):
    found = Uncertainty(scale)
    return found, found.add("one", image, target, deviation)


def test_deviations_of_normal_errors_hold_nine_tenths_and_need_no_scaling():
    found, scores = added(DEVIATION)
    inside = np.abs(IMAGE - TARGET) <= stats.norm.ppf(0.95) * DEVIATION
    assert scores["coverage"] == np.mean(inside)
    assert abs(scores["coverage"] - 0.9) < 0.02
    assert abs(found.calibrated_scale() - 1) < 0.03
    assert scores["width"] == pytest.approx(
        stats.norm.ppf(0.95) * DEVIATION.mean() / TARGET.max()
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_calibrated_deviations_hold_nine_tenths_of_the_errors(scale):
    """Whatever was wrong with them, and whatever they were multiplied by before."""
    wrong = DEVIATION**2 / 7
    right, scores = added(scale * wrong, scale)
    assert not 0.8 < scores["coverage"] < 0.95
    _, again = added(right.calibrated_scale() * wrong)
    assert 0.9 <= again["coverage"] < 0.902


def test_the_calibrated_scale_is_the_conformal_quantile():
    """That of rank ceil(0.9 (n + 1)), to the width of a bin."""
    few = np.s_[:1, :2, :9]  # 18 pixels, so rank 18: the largest
    found, _ = added(DEVIATION[few], image=IMAGE[few], target=TARGET[few])
    ratio = np.abs(IMAGE - TARGET)[few] / DEVIATION[few]
    largest = found.calibrated_scale() * HALF_WIDTH
    assert largest == pytest.approx(ratio.max(), rel=1.2e-3)
    assert largest >= ratio.max()


def test_too_few_pixels_cannot_calibrate():
    few = np.s_[:1, :2, :4]
    found, _ = added(DEVIATION[few], image=IMAGE[few], target=TARGET[few])
    with pytest.raises(InputError, match="8 pixels"):
        found.calibrated_scale()


def test_air_does_not_count():
    target = TARGET.copy()
    target[:, :16] = 0.01
    _, scores = added(DEVIATION, target=target, image=target + 9 * (target < 0.1))
    assert (scores["pixels"], scores["coverage"]) == (4 * 16 * 32, 1.0)


def test_the_area_is_that_of_the_curve():
    error, deviation = RNG.normal(size=50), RNG.uniform(size=50)
    curve = []
    for count in range(1, 51):
        left = sorted(zip(deviation, error, strict=True))[:count]
        curve.append(np.sqrt(np.mean([e**2 for _, e in left])))
    assert area(error, deviation) == pytest.approx(np.mean(curve) / curve[-1])
    assert area(error, np.abs(error)) < area(error, deviation)


def test_deviations_without_information_have_an_area_of_one():
    """Whatever the order of the pixels: errors grow along the slices here."""
    error = np.arange(1.0, 51.0)
    assert area(error, np.ones(50)) == pytest.approx(1)
    assert area(error[::-1], np.ones(50)) == pytest.approx(1)


def test_people_with_more_pixels_weigh_more():
    found, _ = added(DEVIATION)
    less = np.s_[:1]
    found.add("two", IMAGE[less], TARGET[less], 1e-6 * DEVIATION[less])
    summary = found.summary()
    people = summary["by_person"]
    one, two = (people[name]["coverage"] for name in ("one", "two"))
    assert two < 0.01
    assert abs(people["one"]["calibrated_scale"] - 1) < 0.03
    assert people["two"]["calibrated_scale"] > 1e3
    assert summary["coverage"] == pytest.approx((4 * one + two) / 5)


def test_the_curve_of_calibrated_deviations_is_the_diagonal():
    shape = (40, 64, 64)
    deviation = RNG.uniform(0.01, 0.1, shape)
    found = Uncertainty()
    target = np.ones(shape)
    found.add("one", target + deviation * RNG.normal(size=shape), target, deviation)
    expected, error = found.curve()
    assert expected.min() < 0.015
    assert expected.max() > 0.085
    np.testing.assert_allclose(error, expected, rtol=0.1)


@pytest.fixture(scope="module")
def networks():
    """A network that predicts deviations, and the parameters of three members."""
    model, params, batch = tiny(deviation=True)
    members = [jax.tree.map(lambda x, s=s: s * x, params) for s in (1.0, 0.9, 0.8)]
    return model, members, batch


def test_an_ensemble_adds_up_its_members_and_keeps_what_was_measured(networks):
    model, members, batch = networks
    each = [apply(model, params, batch) for params in members]
    found = jax.jit(ensemble.reconstruct, static_argnums=0)(model, members, batch)
    images = np.stack([one.image for one in each])
    np.testing.assert_allclose(found.members, images, atol=1e-4)
    np.testing.assert_allclose(found.image, images.mean(0), atol=1e-4)
    # Around the magnitude of the mean, which is not the mean of the magnitudes.
    spread = magnitude(images) - magnitude(images.mean(0))
    variance = np.sum(spread**2, axis=0) / 2
    variance += np.mean([np.square(one.deviation) for one in each], axis=0)
    np.testing.assert_allclose(found.deviation, np.sqrt(variance), rtol=1e-3)
    wanted = batch.kspace[..., 0] + 1j * batch.kspace[..., 1]
    for image in (found.image, *found.members):
        x = np.fft.ifftshift(image[..., 0] + 1j * image[..., 1], axes=(1, 2))
        spectrum = np.fft.fftshift(np.fft.fft2(x, norm="ortho"), axes=(1, 2))
        sampled = np.asarray(batch.mask)
        np.testing.assert_allclose(spectrum[sampled], wanted[sampled], atol=1e-4)


def test_a_plain_ensemble_has_the_spread_of_its_members_on_devices_that_share(networks):
    _, members, batch = networks
    model = KSpaceTransformer(make_kst_tiny.CONFIG)
    plain = [
        {name: x for name, x in params.items() if name != "deviation"}
        for params in members
    ]
    each = np.stack([apply(model, x, batch).image for x in plain])
    mesh = parallel.make_mesh(2, 2)
    scale = np.zeros(2, np.float32), np.float32([1, 3])
    inputs = parallel.shard((batch, *scale, None), mesh)
    scorer = make_scorer(model, mesh)
    found = scorer(parallel.replicate(tuple(plain), mesh), *inputs)
    spread = magnitude(each) - magnitude(each.mean(0))
    wanted = np.sqrt(np.sum(spread**2, axis=0) / 2) * scale[1][:, None, None]
    deviation = parallel.fetch(found)["images"]["deviation"]
    np.testing.assert_allclose(deviation, wanted, atol=1e-4)


def test_deviations_learn_the_likelihood_and_leave_the_image_alone():
    model, params, batch = tiny(deviation=True, transformer=False)
    plain = KSpaceTransformer(dataclasses.replace(model.config, deviation=False))
    without = {name: x for name, x in params.items() if name != "deviation"}
    config = TrainConfig()

    def loss_of(params, model):
        output = model.reconstruct(params, batch)
        return losses.loss(output, batch, config, "RM"), output

    @jax.jit
    def both(params, without):
        with_gradient = jax.value_and_grad(loss_of, has_aux=True)
        return with_gradient(params, model), with_gradient(without, plain)

    ((loss, output), gradient), ((expected, _), other) = both(params, without)
    error = magnitude(np.asarray(output.image)) - magnitude(np.asarray(batch.image))
    surprise = -stats.norm.logpdf(error, scale=np.asarray(output.deviation)).mean()
    surprise -= np.log(2 * np.pi) / 2
    # The difference of two large float32 numbers.
    assert 1e3 * (loss - expected) == pytest.approx(surprise, rel=0.02)
    own = gradient.pop("deviation")
    assert min(np.abs(x).max() for x in jax.tree.leaves(own)) > 0
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max()),
        gradient,
        other,
    )


def test_the_largest_likelihood_is_at_the_root_mean_square_error():
    """A deviation that cannot see the image learns one number: that one."""
    model, params, batch = tiny(deviation=True)
    output = apply(model, params, batch)
    error = magnitude(np.asarray(output.image)) - magnitude(np.asarray(batch.image))
    best = np.sqrt(np.mean(error**2))

    @jax.jit
    @jax.grad
    def slope(deviation):
        same = output.replace(deviation=0 * output.deviation + deviation)
        return losses.loss(same, batch, TrainConfig(), "RM")

    assert abs(slope(best)) < 1e-2 * abs(slope(2 * best))


def test_only_the_last_stage_predicts_deviations(networks):
    model, members, batch = networks
    for stage in model.stages:
        reached = functools.partial(model.reconstruct, batch=batch, stage=stage)
        found = jax.eval_shape(reached, members[0]).deviation
        assert (found is None) == (stage != "RM"), stage
    assert model.introduced_in((jax.tree_util.DictKey("deviation"),)) == "RM"


SCANS = {
    "coils": Config(
        data=DataConfig(size=(16, 12), coils=CoilsConfig(count=2, calibration=12)),
        model=KSTConfig(**{**vars(make_kst_tiny.CONFIG), "deviation": True}),
    ),
    "spokes": Config(
        data=DataConfig(size=(16, 16)),
        mask=MaskConfig(kind="radial", acceleration=2.0),
        model=KSTConfig(**{**vars(make_kst_tiny.CONFIG), "deviation": True}),
    ),
}


@pytest.mark.parametrize("name", SCANS)
def test_scans_of_coils_and_off_the_grid_have_deviations(name):
    config = SCANS[name]
    shape = config.data.size
    batch = pipeline.example_batch(config, opening.open_sampler(config), 2)
    model = build(config.model)

    def of(key):
        params = model.init(key, batch)["params"]
        found = model.reconstruct(params, batch)
        return found.deviation, losses.loss(found, batch, config.train, "RM")

    deviation, loss = jax.eval_shape(of, jax.random.key(0))
    assert (deviation.shape, loss.shape) == ((2, *shape), ())


REFUSED = {
    "model.deviation": {
        "model": KSTConfig(deviation=True),
        "train": TrainConfig(supervision="self"),
    },
    "data.normalise": {
        "eval": EvalConfig(members="other"),
        "data": DataConfig(normalise="target"),
    },
    "eval.calibration": {"eval": EvalConfig(calibration="folder")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_contradict_deviations_are_refused(name):
    with pytest.raises(InputError, match=f"config.{name}"):
        Config(**REFUSED[name])


def test_the_published_network_has_no_deviations():
    assert not make_kst_tiny.CONFIG.deviation
    assert "deviation" not in tiny()[1]
