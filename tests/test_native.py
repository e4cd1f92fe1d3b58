"""fastMRI's protocol: scans at their measured sizes, in training and evaluation."""

import dataclasses
import itertools

import h5py
import jax
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kst_jax import masks, sampling
from kst_jax.config import Config, TrainConfig
from kst_jax.data import opening, pipeline
from kst_jax.data.readers import fastmri
from kst_jax.data_config import AugmentConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.eval_config import EvalConfig
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.mask_config import MaskConfig
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.models.registry import build
from kst_jax.runs.checkpoints import write_parameters
from kst_jax.training.loop import train
from tests import fastmri_files
from tests.programs import refused
from tests.test_training import TINY

MATRIX = (16, 14)
# Width, measured columns, acquisition and number of slices of each scan.
SCANS = {
    "file1": (20, None, "CORPD_FBK", 3),
    "file2": (22, (2, 21), "CORPDFS_FBK", 5),
    "file3": (20, None, "CORPDFS_FBK", 4),
}
MODEL = dataclasses.replace(TINY.model, lr_size=(8, 10))
CONVOLUTIONAL = D5C5Config(cascades=2, layers=3, features=8)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, slices = tmp_path_factory.mktemp("knees"), {}
    for person in ("train", "test"):
        slices[person] = fastmri_files.slices_of(f"demo:{person}", MATRIX)
        (folder / person).mkdir()
        for seed, (name, (width, columns, kind, count)) in enumerate(SCANS.items()):
            kspace = fastmri_files.measured(
                slices[person][seed * 5 :][:count], width, columns, seed=seed
            )
            path = folder / person / f"{person}_{name}.h5"
            fastmri_files.write(path, kspace, MATRIX, columns, acquisition=kind)
    return Config(
        data=DataConfig(
            train=str(folder / "train"),
            test=str(folder / "test"),
            native=True,
            size=(16, 20),
        ),
        mask=MaskConfig(
            kind="fastmri_random", acceleration=(2.0, 4.0), center_fraction=(0.1, 0.1)
        ),
        model=MODEL,
        train=TrainConfig(steps=2, batch_size=2, image_every=0),
        eval=EvalConfig(batch_size=4, figures=3),
    )


@pytest.fixture(scope="module")
def source(config):
    return opening.open_sources(config)[0]


def taken(config, source, count, sampler=None, **shares):
    sampler = sampler or opening.open_sampler(config)
    stream = pipeline.training_batches(source, config, sampler, **shares)
    return list(itertools.islice(stream, count))


def test_batches_hold_one_size_and_every_slice_is_seen(config, source):
    batches = taken(config, source, 60)
    widths = [batch.grid[1] for batch in batches]
    assert {batch.grid for batch in batches} == {(16, 20), (16, 22)}
    # Seven slices of twelve are 20 wide.
    assert 30 <= widths.count(20) <= 40
    assert all(batch.field == MATRIX for batch in batches)
    magnitudes = [np.hypot(*np.moveaxis(x, -1, 0)) for b in batches for x in b.image]
    # A slice's scale differs from mask to mask; its peak over its norm does not.
    peaks = {round(float(x.max() / np.linalg.norm(x)), 5) for x in magnitudes}
    assert len(peaks) == len(source)


def test_the_target_is_the_files_and_k_space_is_as_measured(config, source):
    """Rows are cropped in image space; what was sampled is the file's, to a scale."""
    batch = next(b for b in taken(config, source, 20) if b.grid == (16, 22))
    found = np.asarray(batch.image)
    spectra = fastmri_files.fft(found[..., 0] + 1j * found[..., 1])
    kept = np.asarray(batch.kspace)[..., 0] + 1j * np.asarray(batch.kspace)[..., 1]
    np.testing.assert_allclose(kept, np.where(batch.mask, spectra, 0), atol=1e-5)
    with fastmri.open_file(f"{config.data.train}/train_file2.h5") as file:
        targets = file["reconstruction_esc"][()]
    shown = np.abs(fastmri_files.crop(found[..., 0] + 1j * found[..., 1], MATRIX))
    for image in shown:
        scales = targets.sum(axis=(1, 2)) / image.sum()
        errors = [
            np.abs(target - scale * image).max() / target.max()
            for target, scale in zip(targets, scales, strict=True)
        ]
        assert min(errors) < 1e-5


def test_k_space_of_a_simulated_scan_has_its_phase_and_noise(config):
    augment = AugmentConfig(phase=1.0, noise=0.1)
    data = dataclasses.replace(
        config.data, train="demo:train", test="demo:test", augment=augment
    )
    simulated = dataclasses.replace(config, data=data)
    batch = taken(simulated, opening.open_sources(simulated)[0], 1)[0]
    spectra = fastmri_files.fft(batch.image[..., 0] + 1j * batch.image[..., 1])
    kept = batch.kspace[..., 0] + 1j * batch.kspace[..., 1]
    np.testing.assert_allclose(kept, np.where(batch.mask, spectra, 0), atol=1e-4)


def test_unmeasured_columns_are_neither_tokens_nor_queries(config, source):
    batch = next(b for b in taken(config, source, 20) if b.grid == (16, 22))
    outside = np.r_[0, 1, 21]
    assert batch.empty[:, :, outside].all()
    assert batch.empty.sum() == batch.empty[:, :, outside].size
    assert not batch.mask[:, :, outside].any()
    columns = np.asarray(batch.query) % 22
    last = 16 * 22 - 1  # padding
    assert not np.isin(columns[batch.query != last], outside).any()
    places = np.rint(np.asarray(batch.position)[..., 1] * 21)[batch.valid]
    assert not np.isin(places, outside).any()
    assert batch.valid.sum() == batch.mask.sum()
    # A reconstruction has zeros there.
    spectrum = np.ones_like(batch.kspace)
    filled = np.asarray(batch.acquisition.fill(spectrum, batch.kspace))
    assert not filled[:, :, outside].any()


def test_masks_are_fastmris_at_the_measured_width_cleared_outside(config):
    sampler, test = opening.open_sampler(config), opening.open_test_source(config)
    for found in pipeline.evaluation_batches(test, config, sampler):
        for number, mask in zip(found.number, found.batch.mask, strict=True):
            if number < 0:
                continue
            about = test.describe(number)
            width, columns, *_ = SCANS[about.volume.removeprefix("test_")]
            rng = np.random.RandomState(sampling.filename_seed(about.file))
            wanted = masks.fastmri_random(rng, (16, width), (2.0, 4.0), (0.1, 0.1))
            first, stop = columns or (0, width)
            wanted[:, :first] = wanted[:, stop:] = False
            np.testing.assert_array_equal(mask, wanted)


def test_evaluation_visits_each_slice_once_in_order(config):
    sampler, test = opening.open_sampler(config), opening.open_test_source(config)
    found = list(pipeline.evaluation_batches(test, config, sampler))
    numbers = [n for batch in found for n in batch.number if n >= 0]
    assert numbers == list(range(len(test)))
    for batch in found:
        grids = {SCANS[test.describe(n).volume[5:]][0] for n in batch.number if n >= 0}
        assert grids == {batch.batch.grid[1]}


def test_hosts_together_see_the_batches_of_one(config, source):
    """Also their shapes: all hosts pad tokens alike, whatever their own masks."""
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_size=4)
    )
    sampler = opening.open_sampler(config)
    usual = 16 * 4, 16 * 11  # so narrow that many batches need the other bucket
    sampler = dataclasses.replace(sampler, buckets=(usual, sampler.counts))
    whole = taken(config, source, 20, sampler)
    parts = [
        taken(config, source, 20, sampler, process=n, processes=2) for n in range(2)
    ]
    for batch, one, two in zip(whole, *parts, strict=True):
        jax.tree.map(
            lambda x, a, b: np.testing.assert_array_equal(
                x, np.stack([a, b], 1).reshape(x.shape)
            ),
            batch,
            one,
            two,
        )
    lengths = {batch.value.shape[1] for batch in whole if batch.grid == (16, 20)}
    assert lengths == {usual[1], sampler.counts[1]}


def test_the_loss_by_ssim_has_the_peak_of_the_volume(config):
    train = dataclasses.replace(config.train, error="ssim", domain="image")
    config = dataclasses.replace(config, train=train)
    source = opening.open_test_source(config)
    peaks = {}
    for name in source.volumes:
        with h5py.File(f"{config.data.test}/{name}.h5") as file:
            peaks[name] = file["reconstruction_esc"][:].max()
    sampler = opening.open_sampler(config)
    for test in pipeline.evaluation_batches(source, config, sampler):
        for n in np.flatnonzero(test.number >= 0):
            wanted = peaks[source.describe(test.number[n]).volume]
            found = test.batch.peak[n] * test.std[n]
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_resumed_stream_goes_on_where_it_stopped(config, source):
    whole = taken(config, source, 9)
    rest = taken(config, source, 4, first_step=5)
    for one, other in zip(whole[5:], rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_tokens_are_padded_to_what_is_usual():
    sampler = sampling.sampler(
        MaskConfig(kind="fastmri_random", acceleration=4), (1, 368)
    )
    counts = [int(sampler.random(np.random.default_rng(n)).sum()) for n in range(2000)]
    (least, most), extreme = sampler.buckets
    inside = [least <= count <= most for count in counts]
    assert 0.99 < np.mean(inside) < 1
    assert most < 0.8 * extreme[1]
    assert sampler.bucket(counts[:3]) == (least, most)
    assert sampler.bucket([*counts[:3], most + 1]) == extreme
    assert sampler.bucket([least - 1]) == extreme


@pytest.mark.parametrize(
    ("kind", "acceleration"),
    [("fastmri_equispaced", 4), ("fastmri_equispaced_fraction", 4.0)],
)
def test_equispaced_masks_need_hardly_any_padding(kind, acceleration):
    sampler = sampling.sampler(
        MaskConfig(kind=kind, acceleration=acceleration), (1, 368)
    )
    counts = {int(sampler.random(np.random.default_rng(n)).sum()) for n in range(200)}
    assert sampler.buckets == ((min(counts), max(counts)),)
    assert max(counts) - min(counts) <= 2


def test_both_accelerations_are_drawn(config):
    sampler = opening.open_sampler(config).at((1, 400))
    rng = np.random.default_rng(0)
    counts = np.array([sampler.random(rng).sum() for _ in range(400)])
    assert 0.4 < (counts > 150).mean() < 0.6
    np.testing.assert_allclose(counts[counts > 150].mean(), 200, rtol=0.02)
    np.testing.assert_allclose(counts[counts <= 150].mean(), 100, rtol=0.02)
    assert {sampler.fixed_acceleration(f"file{n}.h5") for n in range(9)} == {2.0, 4.0}


def test_the_low_resolution_grid_keeps_its_share(config, source):
    model = build(config.model, config.data.size)
    batch = next(b for b in taken(config, source, 20) if b.grid == (16, 22))
    assert model.at(batch.grid).config.lr_size == (8, 11)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    found = jax.eval_shape(model.reconstruct, params, batch)
    assert found.supervised["lr"].shape[2:4] == (8, 11)


@pytest.fixture(scope="module")
def evaluated(config, source, tmp_path_factory):
    run = tmp_path_factory.mktemp("native") / "run"
    config = dataclasses.replace(config, model=CONVOLUTIONAL)
    batch = pipeline.example_batch(config, opening.open_sampler(config))
    init = jax.jit(build(config.model).init)
    params = init(jax.random.key(0), batch)["params"]
    write_parameters(run, params, config)
    return evaluate(config, run), run / "eval"


def fastmris_scores(target, image):
    """As fastmri/evaluate.py: both cropped to the target's columns."""
    side = target.shape[-1]
    target, image = (fastmri_files.crop(x, (side, side)) for x in (target, image))
    peak = target.max()
    similar = [
        structural_similarity(a, b, data_range=peak)
        for a, b in zip(target, image, strict=True)
    ]
    return {
        "nmse": np.linalg.norm(target - image) ** 2 / np.linalg.norm(target) ** 2,
        "psnr": peak_signal_noise_ratio(target, image, data_range=peak),
        "ssim": np.mean(similar),
    }


@pytest.mark.slow
def test_scores_are_fastmris_of_the_same_files(config, evaluated):
    report, out = evaluated
    assert len(report["per_volume"]) == len(SCANS)
    for name, found in report["per_volume"].items():
        with fastmri.open_file(f"{config.data.test}/{name}.h5") as file:
            target = file["reconstruction_esc"][()].astype(np.float64)
        with h5py.File(out / "reconstructions" / f"{name}.h5") as file:
            image = file["reconstruction"][()]
        assert image.shape == target.shape
        for score, value in fastmris_scores(target, image).items():
            assert found["reconstruction"][score] == pytest.approx(value, rel=1e-6), (
                score
            )


def test_scores_are_also_given_by_acceleration_and_acquisition(config, evaluated):
    report, out = evaluated
    sampler = opening.open_sampler(config)
    for group, names in (
        ("by_acquisition", {"CORPD_FBK": ["file1"], "CORPDFS_FBK": ["file2", "file3"]}),
        (
            "by_acceleration",
            {
                str(acceleration): [
                    name
                    for name in SCANS
                    if sampler.fixed_acceleration(f"test_{name}.h5") == acceleration
                ]
                for acceleration in (2.0, 4.0)
            },
        ),
    ):
        for value, members in names.items():
            if not members:
                assert value not in report[group]
                continue
            found = report[group][value]
            scores = [
                report["per_volume"][f"test_{name}"]["reconstruction"]["ssim"]
                for name in members
            ]
            assert found["count"] == len(members)
            assert found["reconstruction"]["ssim"]["mean"] == pytest.approx(
                np.mean(scores)
            )
    figures = sorted(path.name for path in (out / "figures").glob("*.png"))
    assert figures == ["reconstructions.png", "stages.png"]


@pytest.mark.slow
def test_a_network_learns_at_two_sizes_and_accelerations(config, tmp_path):
    """It beats zero-filling on another person's scans."""
    learning = dataclasses.replace(
        config,
        model=CONVOLUTIONAL,
        train=TrainConfig(
            steps=60, batch_size=4, learning_rate=3e-3, warmup_steps=5, image_every=0
        ),
    )
    train(learning, tmp_path)
    scores = evaluate(learning, tmp_path)["slices"]["input"]
    gain = (
        scores["reconstruction"]["psnr"]["mean"] - scores["zero_filled"]["psnr"]["mean"]
    )
    assert gain > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": 10.0}, "data.augment.rotation=10.0 .* data.native=True"),
        ({"flip_rows": True}, "data.augment.flip_rows=True .* data.native=True"),
    ],
)
def test_changes_of_geometry_are_refused(change, message):
    augment = dataclasses.replace(DataConfig().augment, **change)
    with pytest.raises(InputError, match=message):
        DataConfig(native=True, augment=augment)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"acceleration": (4.0, 8.0)}, "center_fraction=0.08 .* one number for each"),
        (
            {"acceleration": (4.0, 8.0), "kind": "uniform_1d"},
            "acceleration=.4.0, 8.0. .* one number if",
        ),
        (
            {"acceleration": (4.0, 1.0), "center_fraction": (0.08, 0.04)},
            "acceleration=.4.0, 1.0. .* above 1",
        ),
        ({"acceleration": (), "center_fraction": ()}, "acceleration=.. .* above 1"),
    ],
)
def test_accelerations_that_no_mask_has_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        MaskConfig(**{"kind": "fastmri_random", **values})


def test_k_space_outside_the_measured_columns_is_refused(config, tmp_path):
    name = "train_file2.h5"
    with h5py.File(tmp_path / name, "w") as copy:
        with fastmri.open_file(f"{config.data.train}/{name}") as file:
            for key in file:
                file.copy(key, copy)
        copy["kspace"][1, 3, 0] = 1
    broken = dataclasses.replace(
        config, data=dataclasses.replace(config.data, train=str(tmp_path))
    )
    with pytest.raises(InputError, match="slice 1: k-space is not zero in columns"):
        taken(broken, opening.open_sources(broken)[0], 20)


def test_a_network_that_the_measured_size_does_not_suit_is_refused(config, tmp_path):
    message = refused(
        "train.py",
        "--config=unet",
        "--config.data.native=True",
        f"--config.data.train={config.data.train}",
        f"--config.data.test={config.data.test}",
        "--config.mask.kind=fastmri_random",
        f"--workdir={tmp_path}",
    )
    assert "train_file1.h5: its k-space of 16 x 20 cannot be used" in message
