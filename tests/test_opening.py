"""The scans of a run: who is trained on, who tested, and what each seed changes."""

import dataclasses

import h5py
import numpy as np
import pytest

from kst_jax.config import Config
from kst_jax.data import opening, pipeline, sources
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.models.config import KSTConfig
from tests.scans import write_nifti
from tests.test_pipeline import SMALL


@pytest.mark.parametrize(
    ("plane", "size"), [("axial", (102, 70)), ("coronal", (170, 70))]
)
def test_fields_of_view_follow_from_the_affine(plane, size, tmp_path):
    """A volume stored as (z, x, y); its voxels are 1.7, 0.7 and 1.02 mm apart."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 1.7, -0.7, 1.02, 1
    volume = np.random.default_rng(0).uniform(50, 100, (120, 110, 130))
    write_nifti(tmp_path / "a.nii", volume.astype("f4"), affine)
    data = DataConfig(train=str(tmp_path), size=(50, 50), crop=(100, 100), plane=plane)
    source = sources.open_source(str(tmp_path), data.selection(0))
    found = opening.fields_of_view(source, dataclasses.replace(SMALL, data=data))
    assert found == [size]


@pytest.mark.parametrize(
    ("name", "changed"), [("seed", ""), ("split_seed", "people"), ("draw_seed", "draw")]
)
def test_each_seed_changes_one_thing_alone(name, changed, tmp_path):
    """Who is tested and which slices are drawn stay when a training is reseeded."""
    for person in range(8):
        write_nifti(tmp_path / f"sub-{person}.nii", np.ones((32, 24, 12), "f4"))
    data = dataclasses.replace(SMALL.data, train=str(tmp_path), test="", fraction=0.5)
    data = dataclasses.replace(data, crop=(0, 0), slices=(0.0, 1.0))

    def parts(**seeds):
        seeded = dataclasses.replace(data, **seeds)
        sides = opening.open_sources(dataclasses.replace(SMALL, data=seeded))
        drawn = {
            (item.file, item.index)
            for side in sides
            for item in map(side.describe, range(len(side)))
        }
        return {"people": [side.subjects for side in sides], "draw": drawn}

    before, after = parts(), parts(**{name: 1})
    assert [part for part in before if before[part] != after[part]] == changed.split()


@pytest.mark.parametrize(
    "opened", [lambda c: opening.open_sources(c)[1], opening.open_test_source]
)
def test_runs_of_any_seed_meet_the_same_test(opened):
    """Slices and masks, which go by `eval.seed` alone."""

    def test_of(seed, test_seed):
        data = dataclasses.replace(SMALL.data, fraction=0.5, seed=seed)
        config = dataclasses.replace(
            SMALL,
            data=data,
            train=dataclasses.replace(SMALL.train, seed=seed),
            eval=dataclasses.replace(SMALL.eval, seed=test_seed),
        )
        source = opened(config)
        slices = [source.describe(n).index for n in range(len(source))]
        sampler = opening.open_sampler(config)
        return slices, next(
            iter(pipeline.evaluation_batches(source, config, sampler))
        ).batch.mask

    slices, masks = test_of(0, 0)
    same_slices, same_masks = test_of(1, 0)
    assert slices == same_slices
    np.testing.assert_array_equal(masks, same_masks)
    other_slices, other_masks = test_of(0, 1)
    assert slices != other_slices
    assert not np.array_equal(masks, other_masks)


def test_people_are_set_aside_where_no_test_scans_are_named():
    data = DataConfig(
        train="demo:train,demo:test",
        test="",
        test_fraction=0.5,
        size=(32, 32),
        pad=True,
    )
    config = dataclasses.replace(SMALL, data=data, model=KSTConfig(lr_size=(16, 16)))
    train, test = opening.open_sources(config)
    assert len(train.subjects) == len(test.subjects) == 1
    assert train.subjects != test.subjects
    assert opening.open_test_source(config).subjects == test.subjects


def test_the_share_of_people_set_aside_is_the_tests(tmp_path):
    for name in ("a", "b", "c", "d"):
        kspace = np.random.default_rng(0).normal(size=(2, 32, 24)).astype("c8")
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["kspace"] = kspace
    data = DataConfig(train=str(tmp_path), test_fraction=0.25, size=(32, 24))
    train, test = opening.open_sources(dataclasses.replace(SMALL, data=data))
    assert (len(train.subjects), len(test.subjects)) == (3, 1)


def test_the_same_person_on_both_sides_is_refused():
    with pytest.raises(InputError, match=r"sub-0017.*training and in the test"):
        opening.open_sources(
            Config(data=DataConfig(train="demo:train", test="demo:train"))
        )


def test_training_scans_must_be_named():
    with pytest.raises(InputError, match=r"config\.data\.train is empty"):
        opening.open_sources(Config())
