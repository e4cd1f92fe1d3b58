"""Export of a network for several coils."""

import subprocess
import sys

import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.birdcage import birdcage
from kst_jax.config import Config
from kst_jax.data import opening
from kst_jax.data_config import CoilsConfig, DataConfig
from kst_jax.export import command, standalone
from kst_jax.mask_config import MaskConfig
from kst_jax.models.kst import KSpaceTransformer
from tests.references import make_kst_tiny
from tests.test_kst import apply

SIZE = (16, 16)
CONFIG = Config(
    data=DataConfig(size=SIZE, coils=CoilsConfig(count=2, calibration=12)),
    mask=MaskConfig("fastmri_random", 4.0, center_fraction=0.2),
    model=make_kst_tiny.CONFIG,
)


def channels(x):
    return np.stack([x.real, x.imag], -1).astype(np.float32)


@pytest.mark.slow
def test_the_loader_gives_what_the_network_gives(tmp_path):
    sampler, rng = opening.open_sampler(CONFIG), np.random.default_rng(0)
    masks = [sampler.random(rng) for _ in range(3)]
    kspace = rng.normal(size=(3, 2, *SIZE)) + 1j * rng.normal(size=(3, 2, *SIZE))
    maps = np.stack([birdcage(n, SIZE, 2) for n in range(3)])
    batch = tokens.batch_of(
        [
            tokens.tokenise(channels(k), mask, sampler.layout((1, 1)))
            | {"maps": channels(s)}
            for k, mask, s in zip(kspace, masks, maps, strict=True)
        ]
    )
    model = KSpaceTransformer(make_kst_tiny.CONFIG)
    params = make_kst_tiny.weights(model, batch)
    command.write(command.export(CONFIG, params, ("cpu",)), tmp_path / "out")
    np.savez(tmp_path / "in.npz", kspace=kspace, mask=masks, maps=maps)
    program, target = tmp_path / "out" / "reconstruct.py", tmp_path / "image.npy"
    subprocess.run(
        [sys.executable, "-I", program, tmp_path / "in.npz", target], check=True
    )
    wanted = np.asarray(apply(model, params, batch).image)
    np.testing.assert_allclose(channels(np.load(target)), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"maps": np.ones((3, 3, *SIZE), complex)}, r"maps is complex128 \(3, 3,"),
        ({"mask": np.ones((2, *SIZE), bool)}, r"not complex \(2, 2, 16, 16\)"),
        ({"mask": np.ones((3, 2, *SIZE), bool)}, r"not bool \(3, 16, 16\)"),
    ],
)
def test_arrays_of_other_shapes_are_refused(changes, cause, tmp_path):
    good = np.ones((3, 2, *SIZE), complex)
    arrays = {"kspace": good, "maps": good, "mask": np.ones((3, *SIZE), bool)}
    np.savez(tmp_path / "in.npz", **(arrays | changes))
    with pytest.raises(ValueError, match=cause):
        standalone.read(str(tmp_path / "in.npz"), (2, *SIZE))
