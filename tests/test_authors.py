"""The network computes what the authors' own does, on weights of theirs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kst_jax import tokens
from kst_jax.config import TrainConfig
from kst_jax.convert.command import load, parameters
from kst_jax.fourier import fft2c
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.training.averages import average_pool
from kst_jax.training.losses import loss
from tests.conftest import AUTHORS, AUTHORS_CHECKPOINT

pytestmark = pytest.mark.usefixtures("full_compilation")


def relative(got, wanted):
    return np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted)


@pytest.fixture(scope="module")
def authors():
    goldens = np.load(AUTHORS)
    meta = json.loads(str(goldens["meta"]))
    size = (meta["lr_size"],) * 2
    params, config = load(AUTHORS_CHECKPOINT, meta["num_heads"], size)
    slices = zip(*(goldens[x] for x in ("kspace", "mask", "image")), strict=True)
    batch = tokens.batch_of(
        [tokens.tokenise(k, m) | {"image": i} for k, m, i in slices]
    )
    return goldens, KSpaceTransformer(config), params, batch


@pytest.mark.parametrize("stage", ["LR", "K", "RM"])
def test_outputs_equal_the_authors(authors, stage):
    goldens, model, params, batch = authors
    output = jax.jit(model.apply, static_argnames="stage")(
        {"params": params}, batch, stage=stage
    )
    found = {
        "up_image": output.upsampled,
        "up_kspace": fft2c(output.upsampled),
        "lr_images": output.supervised["lr"],
        "hr_kspace_images": output.supervised.get("kspace"),
        "hr_refined_images": output.supervised.get("refined"),
    }
    names = [x for x in goldens.files if x.startswith(f"out/{stage}/")]
    assert len(names) == {"LR": 3, "K": 4, "RM": 5}[stage]
    for name in names:
        assert relative(found[name.split("/")[-1]], goldens[name]) < 1e-5, name


@pytest.mark.slow
def test_training_equals_the_authors(authors):
    goldens, model, params, batch = authors
    np.testing.assert_allclose(
        average_pool(jnp.asarray(batch.image), (16, 16)), goldens["lr_image"], atol=1e-6
    )
    config = TrainConfig(keep_lr_weight=False)

    @jax.jit
    def step(params, state):
        def loss_of(p):
            output = model.apply({"params": p}, batch)
            return loss(output, batch, config, "RM")

        value, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, gradient

    optimizer = optax.adamw(5e-4, weight_decay=0.0)
    state, losses, gradients = optimizer.init(params), [], []
    for _ in range(4):
        params, state, value, gradient = step(params, state)
        losses.append(value)
        gradients.append(gradient)
    np.testing.assert_allclose(losses, goldens["losses"], rtol=1e-4)
    recorded = parameters(
        {x[5:]: goldens[x] for x in goldens.files if x.startswith("grad/")}
    )
    largest = max(np.linalg.norm(g) for g in jax.tree.leaves(recorded))
    for (path, wanted), got in zip(
        jax.tree.leaves_with_path(recorded), jax.tree.leaves(gradients[0]), strict=True
    ):
        # The last bias moves the mean alone, which is measured: its gradient is
        # rounding error around zero.
        if np.linalg.norm(wanted) > 1e-6 * largest:
            assert relative(got, wanted) < 1e-3, jax.tree_util.keystr(path)
