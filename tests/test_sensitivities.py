"""Coils in the data path: maps of whole scans, and the batches made with them."""

import dataclasses

import numpy as np
import pytest

from kst_jax.birdcage import birdcage
from kst_jax.config import Config, TrainConfig
from kst_jax.data import opening, pipeline, receivers, sensitivities
from kst_jax.data_config import AugmentConfig, CoilsConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.sense import SENSEConfig
from tests import fastmri_files
from tests.test_coils import direction

SIZE = (48, 48)
DATA = DataConfig(
    train="demo:train",
    test="demo:test",
    slices=(0.5, 0.56),
    size=SIZE,
    crop=(208, 208),
    pad=True,
    augment=AugmentConfig(phase=0.5),
    coils=CoilsConfig(count=4, sets=2),
)
CONFIG = Config(
    data=DATA,
    mask=MaskConfig(kind="uniform_1d", acceleration=4.0),
    model=SENSEConfig(),
    train=TrainConfig(batch_size=2),
)


def with_data(**changes):
    data = dataclasses.replace(DATA, **changes)
    return dataclasses.replace(CONFIG, data=data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("maps")


@pytest.fixture(scope="module")
def people(folder):
    train, test = opening.open_sources(CONFIG)
    return (
        sensitivities.estimate(train, CONFIG, folder, sets=2),
        sensitivities.estimate(test, CONFIG, folder),
    )


def as_complex(x):
    return np.asarray(x)[..., 0] + 1j * np.asarray(x)[..., 1]


def evaluated(source, config=CONFIG):
    sampler = opening.open_sampler(config)
    return next(iter(pipeline.evaluation_batches(source, config, sampler)))


@pytest.mark.parametrize(("person", "coil_set"), [(0, 0), (0, 1), (1, 0)])
def test_maps_are_those_of_the_simulated_coils(people, person, coil_set):
    source = people[person]
    found = source.receiver(0, coil_set, SIZE)
    true = np.tensordot(found.compression, found.simulated, 1)
    head = np.abs(as_complex(evaluated(source).batch.target[0])) > 0.3
    assert head.mean() > 0.3
    assert (direction(found.maps, true)[head] > 0.99).mean() > 0.98
    norm = np.linalg.norm(found.maps, axis=0)
    np.testing.assert_allclose(norm, 1, atol=1e-4)


def test_every_person_and_set_has_coils_of_its_own(people):
    (entry, *_), (other, *_) = (person.entries for person in people)
    sets = [
        receivers.simulated(scan.subject, number, SIZE, 4)
        for scan, number in ((entry[0], 0), (entry[0], 1), (other[0], 0))
    ]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert direction(sets[one], sets[two]).mean() < 0.95


def test_samples_are_what_the_coils_see_of_the_image(people):
    """The batch's k-space, from the image that it holds and the true coils."""
    source = people[1]
    batch, scale = (x := evaluated(source)).batch, x.std
    whole = with_data(coils=CoilsConfig())
    image = as_complex(evaluated(source_of(whole), whole).batch.target[0])
    image = image * evaluated(source_of(whole), whole).std[0]
    seen = source.receiver(0, 0, SIZE)
    true = np.tensordot(seen.compression, seen.simulated, 1)
    wanted = fastmri_files.fft(true * image) * np.asarray(batch.mask[0])
    found = as_complex(batch.kspace[0]) * scale[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    combined = (seen.maps.conj() * true * image).sum(0) / scale[0]
    np.testing.assert_allclose(as_complex(batch.target[0]), combined, atol=1e-4)
    zero_filled = batch.acquisition.adjoint(batch.kspace)
    assert float((np.asarray(zero_filled) ** 2).mean()) == pytest.approx(1, rel=0.2)


def source_of(config):
    return opening.open_test_source(config)


def test_combined_coils_are_one_coil(people):
    source = people[1]
    several = evaluated(source)
    config = with_data(coils=dataclasses.replace(DATA.coils, combine=True))
    one = evaluated(source, config)
    assert one.batch.maps is None
    assert one.batch.kspace.shape == (4, *SIZE, 2)
    ours, theirs = (
        as_complex(x.batch.target) * x.std[:, None, None] for x in (one, several)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_the_target_may_be_the_root_sum_of_squares(people):
    source = people[1]
    data = dataclasses.replace(
        DATA, coils=dataclasses.replace(DATA.coils, target="rss")
    )
    train = dataclasses.replace(CONFIG.train, error="ssim", domain="image")
    config = dataclasses.replace(CONFIG, data=data, train=train)
    found, combined = evaluated(source, config).batch, evaluated(source).batch
    np.testing.assert_array_equal(found.kspace, combined.kspace)
    rss = np.abs(as_complex(found.target))
    assert not np.asarray(found.target)[..., 1].any()
    np.testing.assert_allclose(found.peak, rss.max((1, 2)), rtol=1e-6)
    # The maps have norm 1, so both are the simulated magnitude where maps are right.
    head = rss > 0.3
    close = np.abs(np.abs(as_complex(combined.target)) / rss - 1)[head] < 0.01
    assert close.mean() > 0.98


def test_training_draws_from_the_bank_the_same_way_on_any_number_of_hosts(people):
    sampler, source = opening.open_sampler(CONFIG), people[0]
    stream = pipeline.training_batches(source, CONFIG, sampler)
    whole = [next(stream) for _ in range(3)]
    parts = [
        pipeline.training_batches(source, CONFIG, sampler, process, 2)
        for process in (0, 1)
    ]
    for batch in whole:
        assert batch.kspace.shape == (2, 4, *SIZE, 2)
        for place, part in enumerate(parts):
            half = next(part)
            np.testing.assert_array_equal(half.maps[0], batch.maps[place])
            np.testing.assert_array_equal(half.kspace[0], batch.kspace[place])
    bank = {
        source.receiver(number, coil_set, SIZE).maps.tobytes(): coil_set
        for number in range(len(source))
        for coil_set in (0, 1)
    }
    drawn = {
        bank[as_complex(maps).astype(np.complex64).tobytes()]
        for batch in whole
        for maps in batch.maps
    }
    assert drawn == {0, 1}


def test_maps_are_estimated_once(people, folder, monkeypatch):
    monkeypatch.setattr(sensitivities, "maps_of", None)
    train, test = opening.open_sources(CONFIG)
    again = sensitivities.estimate(train, CONFIG, folder, sets=2)
    np.testing.assert_array_equal(
        again.receiver(1, 1, SIZE).maps, people[0].receiver(1, 1, SIZE).maps
    )
    other = with_data(coils=CoilsConfig(count=3))
    with pytest.raises(TypeError):  # these have not been estimated
        sensitivities.estimate(test, other, folder)


def test_damaged_maps_are_named(people, folder, tmp_path):
    (path, *_) = folder.iterdir()
    damaged = tmp_path / path.name
    damaged.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=f"{path.name}: the sensitivity maps cannot"):
        receivers.Receivers({("scan", 0): damaged}).read("scan", 0, 0)


@pytest.fixture
def measured(tmp_path):
    """A scan of five coils in fastMRI's layout."""
    images = fastmri_files.slices_of("demo:test", SIZE, (0.5, 0.56))
    maps = birdcage(3, SIZE, 5)
    kspace = fastmri_files.fft(images[:, None] * maps).astype(np.complex64)
    fastmri_files.write(tmp_path / "scan.h5", kspace, SIZE, patient_id="one")
    return tmp_path / "scan.h5", images


def test_measured_coils_are_compressed(measured, tmp_path):
    path, images = measured
    config = with_data(test=str(path), slices=(0.0, 1.0), crop=(0, 0), pad=False)
    source = source_of(config)
    source = sensitivities.estimate(source, config, tmp_path / "maps")
    found = evaluated(source, config)
    assert found.batch.kspace.shape == (4, 4, *SIZE, 2)
    magnitude = np.abs(as_complex(found.batch.target[0])) * found.std[0]
    head = images[0] > 0.1 * images[0].max()
    error = (magnitude - images[0])[head]
    assert np.linalg.norm(error) < 0.03 * np.linalg.norm(images[0][head])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"coils": CoilsConfig()}, "holds k-space of 5 coils. Set"),
        ({"coils": CoilsConfig(count=6)}, "5 coils, fewer than"),
    ],
)
def test_scans_of_other_coils_are_refused(measured, changes, cause):
    config = with_data(test=str(measured[0]), slices=(0.0, 1.0), **changes)
    with pytest.raises(InputError, match=cause):
        source_of(config)


def test_simulated_coils_fill_columns_that_the_scanner_left_empty(tmp_path):
    """Or else zeros would count as measured where the coils have values."""
    images = fastmri_files.slices_of("demo:test", (32, 32), (0.5, 0.56))
    columns = (4, 32)
    kspace = fastmri_files.measured(images, 36, columns)
    path = tmp_path / "scan.h5"
    fastmri_files.write(path, kspace, (32, 32), columns, patient_id="one")
    data = DataConfig(train="demo:train", test=str(path), native=True, size=(32, 36))
    coiled = dataclasses.replace(data, coils=DATA.coils)
    for one, left_empty in ((data, True), (coiled, False)):
        config = dataclasses.replace(CONFIG, data=one)
        source = sensitivities.estimate(source_of(config), config, tmp_path / "maps")
        batch = evaluated(source, config).batch
        assert batch.empty.any() == left_empty
    values = np.abs(batch.kspace[0])[:, np.asarray(batch.mask[0])]
    assert (values.max(axis=(0, 2)) > 0).all()


def test_augmentation_of_measured_coils_is_refused_in_training_alone(measured):
    turned = AugmentConfig(rotation=5.0)
    paths = {"train": str(measured[0]), "slices": (0.0, 1.0), "augment": turned}
    with pytest.raises(InputError, match="would not follow flips"):
        opening.open_sources(with_data(**paths))
    together = paths | {"train": f"{measured[0]},demo:train", "test": ""}
    with pytest.raises(InputError, match="would not follow flips"):
        opening.open_sources(with_data(**together, split_seed=0))
    paths = paths | {"train": "demo:train", "test": paths["train"]}
    assert source_of(with_data(**paths)).subjects == ("one",)


@pytest.mark.parametrize(
    ("coils_changes", "changes", "cause"),
    [
        ({"count": 0}, {}, "data.coils.count=0"),
        ({"maps": "guess"}, {}, "data.coils.maps"),
        ({"target": "rss"}, {}, "unless train.error='ssim'"),
        ({"count": 1, "target": "rss"}, {}, "if networks see one coil"),
        ({"count": 1, "combine": True}, {}, "data.coils.combine"),
        ({"calibration": 49}, {}, "data.coils.calibration=49"),
        ({}, {"normalise": "target"}, "data.normalise"),
    ],
)
def test_settings_that_contradict_are_refused(coils_changes, changes, cause):
    with pytest.raises(InputError, match=cause):
        with_data(coils=dataclasses.replace(DATA.coils, **coils_changes), **changes)
