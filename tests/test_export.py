"""Export: a program that needs only JAX gives what the network gives."""

import dataclasses
import datetime
import hashlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from kst_jax import fourier, tokens
from kst_jax.config import Config
from kst_jax.data import opening, pipeline
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.export import command, standalone
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.registry import build
from kst_jax.runs import checkpoints
from tests import baselines
from tests.programs import run_here
from tests.references import make_kst_tiny
from tests.test_kst import apply

pytestmark = pytest.mark.slow

MODEL = KSTConfig(
    width=16,
    heads=2,
    mlp=16,
    encoder_layers=1,
    lr_layers=1,
    hr_layers=2,
    lr_size=(8, 8),
    refinement_features=4,
)


SETTINGS = {
    "gaussian_2d": (MaskConfig(acceleration=4.0), (1, 1)),
    "fastmri_random": (
        MaskConfig("fastmri_random", 4.0, center_fraction=0.2),
        (1, 1),
    ),
    "patches": (MaskConfig(acceleration=4.0), (3, 2)),
}


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, tmp_path_factory):
    """A network of random weights, exported; its masks may vary in count."""
    mask, patch = SETTINGS[request.param]
    config = Config(
        data=DataConfig(size=(16, 16)),
        mask=mask,
        model=dataclasses.replace(MODEL, patch=patch),
    )
    folder = tmp_path_factory.mktemp(request.param)
    sampler = opening.open_sampler(config)
    model = KSpaceTransformer(config.model)
    params = make_kst_tiny.weights(model, pipeline.example_batch(config, sampler))
    checkpoints.write_parameters(folder / "run", params, config)
    done = run_here("kst-export", folder / "run", folder / "exported")
    assert done.returncode == 0, done.stderr
    return folder, model, params, sampler


def test_the_loader_gives_what_the_network_gives(run):
    folder, model, params, sampler = run
    out = folder / "exported"
    rng = np.random.default_rng(0)
    masks = np.stack([sampler.random(rng) for _ in range(3)])
    images = rng.normal(size=(3, 16, 16, 2)).astype(np.float32)
    kspace = np.array(fourier.fft2c(images))
    source, target = folder / "in.npz", folder / "image.npy"
    joined = kspace[..., 0] + 1j * kspace[..., 1]
    np.savez(source, kspace=joined, mask=masks)
    # Elsewhere, so that this package cannot be imported.
    subprocess.run(
        [sys.executable, "-I", out / "reconstruct.py", source, target],
        check=True,
        cwd=folder,
    )
    nowhere = folder / "none" / "image.npy"
    for paths, named in (
        ((folder / "none.npz", target), folder / "none.npz"),
        ((source, nowhere), nowhere),
    ):
        failed = run_here(str(out / "reconstruct.py"), *paths)
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"error: {named}: ")
    assert not list(folder.glob("**/*.partial"))
    patch = model.config.patch
    layout = sampler.layout(patch)
    slices = [tokens.tokenise(*x, layout) for x in zip(kspace, masks, strict=True)]
    images = apply(model, params, tokens.batch_of(slices, patch=patch)).image
    for got, image in zip(np.load(target), images, strict=True):
        wanted = np.asarray(fourier.to_complex(image))
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error < 1e-5


def test_masks_of_another_setting_give_no_image(run):
    _, model, params, sampler = run
    least, most = sampler.counts
    layout = sampler.layout(model.config.patch)
    function = jax.jit(command.reconstructor(model, params, layout))
    kspace = np.ones((1, 16, 16, 2), np.float32)
    cases = {least - 1: False, most: True}
    if most < 256:
        cases[most + 1] = False
    for points, good in cases.items():
        mask = (np.arange(256) < points).reshape(1, 16, 16)
        assert np.isfinite(function(kspace, mask)).all() == good


def test_an_existing_folder_is_left_alone(tmp_path):
    with pytest.raises(InputError, match="already exists"):
        command.write(None, tmp_path)


def test_all_platforms_are_in_the_program(run):
    program = (run[0] / "exported" / "network.stablehlo").read_bytes()
    exported = jax.export.deserialize(bytearray(program))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert str(exported.in_avals[0].shape[0]) == "b"


def test_the_export_tells_which_jax_wrote_it(run):
    about = json.loads((run[0] / "exported" / "network.json").read_text())
    assert about["jax"] == jax.__version__
    age = datetime.datetime.now(datetime.UTC).date() - datetime.date.fromisoformat(
        about["date"]
    )
    assert age <= datetime.timedelta(days=1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 1'])
def test_a_damaged_description_is_refused(text, tmp_path):
    (tmp_path / "network.json").write_text(text)
    with pytest.raises(ValueError, match=r"network\.json is damaged"):
        standalone.load(tmp_path)


def of_another_format(program):
    return b"\0\0\0\0KST0" + program


def of_another_stablehlo(program):
    exported = jax.export.deserialize(bytearray(program))
    later = dataclasses.replace(exported, mlir_module_serialized=b"ML\xefR\xff")
    return later.serialize()


@pytest.mark.parametrize("change", [of_another_format, of_another_stablehlo])
def test_a_network_that_this_jax_cannot_read_is_refused(change, run, tmp_path):
    out = shutil.copytree(run[0] / "exported", tmp_path / "exported")
    program = change((out / "network.stablehlo").read_bytes())
    (out / "network.stablehlo").write_bytes(program)
    sha256 = hashlib.sha256(program).hexdigest()
    about = {"sha256": sha256, "jax": "0.4.30", "date": "2024-06-18"}
    (out / "network.json").write_text(json.dumps(about))
    source = tmp_path / "in.npz"
    kspace = np.ones((1, 16, 16), np.complex64)
    np.savez(source, kspace=kspace, mask=np.ones((1, 16, 16), bool))
    failed = run_here(str(out / "reconstruct.py"), source, tmp_path / "image.npy")
    assert failed.returncode == 1
    assert failed.stderr.startswith(
        f"error: {out}: written by jax 0.4.30 on 2024-06-18"
    )
    assert f"jax {jax.__version__} cannot read it" in failed.stderr
    assert "for six months only; export it again" in failed.stderr


def test_a_network_of_other_platforms_is_refused(run):
    exported = jax.export.deserialize(
        bytearray((run[0] / "exported" / "network.stablehlo").read_bytes())
    )
    standalone.require_platform(exported, "tpu")
    with pytest.raises(ValueError, match=r"cpu, cuda, tpu.*--platforms rocm"):
        standalone.require_platform(exported, "rocm")


@pytest.mark.parametrize(
    ("platform", "flags", "options"),
    [
        ("cuda", "", {"xla_gpu_enable_triton_gemm": False}),
        ("cuda", "--xla_gpu_enable_triton_gemm=true", {}),
        ("cpu", "", {}),
        ("tpu", "", {}),
    ],
)
def test_the_loader_leaves_products_of_a_gpu_to_cublas(
    platform, flags, options, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert standalone.compiler_options(platform) == options


@pytest.mark.parametrize("name", sorted(baselines.TINY))
def test_every_network_can_be_exported(name):
    config = Config(
        data=DataConfig(size=(16, 16)),
        mask=MaskConfig(acceleration=4.0),
        model=baselines.TINY[name],
    )
    model, sampler = build(config.model), opening.open_sampler(config)
    params = make_kst_tiny.weights(model, pipeline.example_batch(config, sampler))
    exported = command.export(config, params, ("cpu",))
    rng = np.random.default_rng(0)
    kspace = rng.normal(size=(3, 16, 16, 2)).astype(np.float32)
    masks = np.stack([sampler.random(rng) for _ in range(3)])
    slices = zip(kspace, masks, strict=True)
    batch = tokens.batch_of([tokens.tokenise(*each) for each in slices])
    wanted = jax.jit(model.apply)({"params": params}, batch).image
    got = exported.call(kspace, masks)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
