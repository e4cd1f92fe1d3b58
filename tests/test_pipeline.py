"""The stream of batches: shapes, masks, determinism, shares."""

import dataclasses
import hashlib
import itertools

import grain
import h5py
import jax
import numpy as np
import pytest

from kst_jax import fourier, masks, tokens
from kst_jax.config import Config, TrainConfig
from kst_jax.data import opening, pipeline
from kst_jax.data.sources import Source
from kst_jax.data_config import AugmentConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import KSTConfig

SMALL = Config(
    data=DataConfig(
        train="demo:train",
        test="demo:test",
        size=(32, 24),
        crop=(176, 176),
        pad=True,
        slices=(0.4, 0.6),
    ),
    model=KSTConfig(lr_size=(16, 12)),
)


@pytest.fixture(scope="module")
def people():
    return opening.open_sources(SMALL)


def batches(config, people, **shares):
    sampler = opening.open_sampler(config)
    return pipeline.training_batches(people[0], config, sampler, **shares)


def equal(one, other):
    same = jax.tree.map(np.array_equal, one, other)
    return all(jax.tree.leaves(same))


def test_batches_hold_the_measured_spectrum_of_the_target(people):
    batch = next(batches(SMALL, people))
    assert batch.value.shape == (4, int(32 * 24 / 5), 2)
    assert batch.image.shape == (4, 32, 24, 2)
    assert batch.valid is None
    spectrum = np.asarray(fourier.fft2c(batch.image))
    np.testing.assert_allclose(
        batch.kspace, np.where(batch.mask[..., None], spectrum, 0), atol=1e-4
    )
    np.testing.assert_array_equal(
        batch.value, batch.kspace[batch.mask].reshape(batch.value.shape)
    )
    zero_filled = np.asarray(fourier.ifft2c(batch.kspace))
    np.testing.assert_allclose((zero_filled**2).mean(axis=(1, 2, 3)), 1, atol=1e-4)


def test_targets_that_are_known_may_set_the_scale(people):
    data = dataclasses.replace(SMALL.data, normalise="target")
    batch = next(batches(dataclasses.replace(SMALL, data=data), people))
    np.testing.assert_allclose(batch.image.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(batch.image.std(axis=(1, 2, 3)), 1, atol=1e-4)


def test_batches_of_one_slice(people):
    train = dataclasses.replace(SMALL.train, batch_size=1)
    batch = next(batches(dataclasses.replace(SMALL, train=train), people))
    assert batch.image.shape == (1, 32, 24, 2)


def test_masks_that_vary_are_padded(people):
    config = dataclasses.replace(SMALL, mask=MaskConfig(kind="fastmri_random"))
    first, second = (next(batches(config, people)) for _ in range(2))
    assert equal(first, second)
    assert first.valid.shape == first.value.shape[:2]
    np.testing.assert_array_equal(first.valid.sum(1), first.mask.sum(axis=(1, 2)))


def test_each_visit_of_a_slice_has_a_fresh_mask(people):
    stream = batches(SMALL, people)
    masks = {next(stream).mask[0].tobytes() for _ in range(12)}
    assert len(masks) == 12


def test_augmentation_changes_training_alone(people):
    augmented = dataclasses.replace(
        SMALL,
        data=dataclasses.replace(SMALL.data, augment=AugmentConfig(rotation=20.0)),
    )
    plain, turned = (next(batches(c, people)) for c in (SMALL, augmented))
    assert not np.allclose(plain.image, turned.image)
    sampler = opening.open_sampler(SMALL)
    plain, turned = (
        next(iter(pipeline.evaluation_batches(people[1], c, sampler)))
        for c in (SMALL, augmented)
    )
    assert equal(plain, turned)


def test_networks_get_nothing_of_what_was_not_sampled(tmp_path):
    """Two targets that differ only where nothing was sampled look the same to them."""
    mask = masks.gaussian_2d(np.random.default_rng(0), (16, 16), 4)
    mask[8, 8] = False  # the centre: the mean of the image
    np.save(tmp_path / "mask.npy", mask[None])
    rng, inputs = np.random.default_rng(1), []
    kspace = rng.normal(size=(1, 16, 16, 2)).astype(np.float32)
    for name in ("one", "other"):
        change = rng.normal(scale=9, size=kspace.shape)
        changed = np.where(mask[..., None], kspace, change).astype(np.float32)
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "scan.npy", changed)
        config = Config(
            data=DataConfig(test=str(tmp_path / name), size=(16, 16)),
            mask=MaskConfig(kind="bank", bank=str(tmp_path / "mask.npy")),
            model=KSTConfig(lr_size=(8, 8)),
        )
        source, sampler = (
            opening.open_test_source(config),
            opening.open_sampler(config),
        )
        inputs += pipeline.evaluation_batches(source, config, sampler)
    one, other = inputs
    assert not np.allclose(one.batch.image, other.batch.image, rtol=0.1)
    np.testing.assert_allclose(one.std, other.std, rtol=1e-5)
    for name in ("value", "position", "query", "kspace", "mask"):
        first, second = (getattr(x.batch, name) for x in (one, other))
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_simulated_scans_are_the_same_in_every_evaluation(people):
    augment = AugmentConfig(phase=1.0, noise=0.05)
    config = dataclasses.replace(
        SMALL, data=dataclasses.replace(SMALL.data, augment=augment)
    )
    sampler = opening.open_sampler(config)
    once, again = (
        next(iter(pipeline.evaluation_batches(people[1], config, sampler)))
        for _ in range(2)
    )
    assert equal(once, again)
    assert np.abs(once.batch.image[..., 1]).max() > 0.1  # an imaginary part


def test_measured_scans_get_neither_phase_nor_noise(tmp_path):
    rng = np.random.default_rng(0)
    kspace = rng.normal(size=(1, 16, 16)) + 1j * rng.normal(size=(1, 16, 16))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
    found = []
    for augment in (AugmentConfig(), AugmentConfig(phase=1.0, noise=0.1)):
        data = DataConfig(test=str(tmp_path), size=(16, 16), augment=augment)
        config = Config(data=data, model=KSTConfig(lr_size=(8, 8)))
        source = opening.open_test_source(config)
        found += pipeline.evaluation_batches(
            source, config, opening.open_sampler(config)
        )
    assert equal(*found)


def slices_of(batch):
    """A digest of each slice of a batch: target, tokens, mask."""
    rows = zip(*jax.tree.leaves(batch), strict=True)
    return [
        hashlib.sha256(b"".join(x.tobytes() for x in row)).hexdigest() for row in rows
    ]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_stream_does_not_depend_on_the_number_of_processes(people, processes):
    config = dataclasses.replace(
        SMALL,
        data=dataclasses.replace(SMALL.data, augment=AugmentConfig(rotation=20.0)),
        mask=MaskConfig(kind="fastmri_random"),
    )
    whole = batches(config, people)
    shares = [
        batches(config, people, process=p, processes=processes)
        for p in range(processes)
    ]
    for _ in range(5):
        parts = [slices_of(next(share)) for share in shares]
        # process p holds slices p, p + processes, ... of the global batch
        joined = [
            digest for together in zip(*parts, strict=True) for digest in together
        ]
        assert slices_of(next(whole)) == joined


@dataclasses.dataclass(frozen=True)
class Counted(Source):
    """Scans that note which of their slices are read."""

    reads: list = dataclasses.field(default_factory=list, compare=False)

    def __getitem__(self, key):
        self.reads.append(int(key))
        return super().__getitem__(key)


def reads_of(people, monkeypatch, stream_of, count=None):
    """Slices read, in their order, for `count` batches of a stream."""
    monkeypatch.setattr(  # nothing ahead
        pipeline,
        "_ahead",
        lambda stream, _: stream.to_iter_dataset(grain.ReadOptions(0, 0)),
    )
    source = Counted(people[0].entries)
    for _ in itertools.islice(stream_of(source), count):
        pass
    return source.reads


def test_each_process_reads_its_share_of_training_alone(people, monkeypatch):
    def reads(**shares):
        return reads_of(
            people, monkeypatch, lambda source: batches(SMALL, [source], **shares), 9
        )

    whole = reads()
    assert len(whole) == 9 * 4
    for process in range(2):
        assert reads(process=process, processes=2) == whole[process::2]


def test_each_epoch_has_every_slice_in_an_order_of_its_own(people, monkeypatch):
    count = len(people[0])
    one_by_one = dataclasses.replace(
        SMALL, train=dataclasses.replace(SMALL.train, batch_size=1)
    )
    reads = reads_of(
        people,
        monkeypatch,
        lambda source: batches(one_by_one, [source]),
        2 * count,
    )
    first, second = reads[:count], reads[count:]
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != sorted(first)
    assert first != second


def test_each_process_reads_its_share_of_a_test_alone(people, monkeypatch):
    sampler = opening.open_sampler(SMALL)
    count = len(people[0])
    assert count % 4

    def reads(*shares):
        return reads_of(
            people,
            monkeypatch,
            lambda source: iter(
                pipeline.evaluation_batches(source, SMALL, sampler, *shares)
            ),
        )

    last = [count - 1] * (-count % 4)  # padding
    whole = reads()
    assert whole == [*range(count), *last]
    for process in range(2):
        rows = np.reshape(whole, (-1, 2, 2))[:, process]
        assert reads(process, 2) == rows.ravel().tolist()


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 15])
def test_the_stream_from_a_step_is_the_rest_of_the_whole(people, steps, processes):
    for process in range(processes):
        share = {"process": process, "processes": processes}
        whole = batches(SMALL, people, **share)
        for _ in range(steps):
            next(whole)
        rest = batches(SMALL, people, **share, first_step=steps)
        assert all(equal(next(rest), next(whole)) for _ in range(3))


def test_a_late_step_is_reached_without_going_through_the_others(people):
    source = Counted(people[0].entries)
    next(batches(SMALL, [source], first_step=10**6))
    assert len(source.reads) < 100


def test_seed_changes_the_stream(people):
    other = dataclasses.replace(SMALL, data=dataclasses.replace(SMALL.data, seed=1))
    assert not equal(next(batches(SMALL, people)), next(batches(other, people)))


def test_evaluation_visits_each_slice_once_and_marks_padding(people):
    source, sampler = people[1], opening.open_sampler(SMALL)
    config = dataclasses.replace(
        SMALL, eval=dataclasses.replace(SMALL.eval, batch_size=3)
    )
    assert len(source) % 3
    found = list(pipeline.evaluation_batches(source, config, sampler))
    numbers = np.concatenate([b.number for b in found])
    assert {len(b.number) for b in found} == {3}
    assert numbers[numbers >= 0].tolist() == list(range(len(source)))
    again = list(pipeline.evaluation_batches(source, config, sampler))
    assert equal(found, again)


def test_a_bank_of_masks(people, tmp_path):
    bank = np.random.default_rng(0).random((6, 32, 24)) < 0.3
    np.save(tmp_path / "masks.npy", bank)
    config = dataclasses.replace(
        SMALL, mask=MaskConfig(kind="bank", bank=str(tmp_path / "masks.npy"))
    )
    batch = next(batches(config, people))
    assert all(any(np.array_equal(m, b) for b in bank) for m in batch.mask)
    with pytest.raises(InputError, match=r"config\.mask\.bank"):
        opening.open_sampler(dataclasses.replace(SMALL, mask=MaskConfig(kind="bank")))


def test_measured_kspace_with_phase(shared):
    config = dataclasses.replace(
        SMALL,
        data=DataConfig(
            train="demo:train",
            test=str(shared / "data" / "brain_vfa_singlecoil.h5"),
            size=(64, 64),
        ),
        train=TrainConfig(),
        model=KSTConfig(lr_size=(32, 32)),
    )
    source = opening.open_test_source(config)
    test = next(
        iter(pipeline.evaluation_batches(source, config, opening.open_sampler(config)))
    )
    assert source.measured
    assert isinstance(test.batch, tokens.Batch)
    assert np.abs(test.batch.image[0, ..., 1]).std() > 0.1
