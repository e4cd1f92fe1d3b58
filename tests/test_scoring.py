"""Batches reconstructed and scored: what is found of each slice."""

import jax
import numpy as np
import pytest

from kst_jax import parallel
from kst_jax.evaluation.scoring import make_scorer
from tests.test_kst import apply, tiny

MEAN, STD = np.float32([3.0, -1.0]), np.float32([5.0, 0.5])


@pytest.fixture(scope="module")
def found_and_output():
    model, params, batch = tiny()
    mesh = parallel.make_mesh(len(MEAN))
    inputs = parallel.shard((batch, MEAN, STD, None), mesh)
    reconstructor = make_scorer(model, mesh)
    found = parallel.fetch(reconstructor((parallel.replicate(params, mesh),), *inputs))
    return found, jax.device_get(apply(model, params, batch)), batch


def in_input_units(images):
    return images * STD[:, None, None, None] + MEAN[:, None, None, None]


def test_stages_are_the_last_layers_in_the_inputs_units(found_and_output):
    found, output, batch = found_and_output
    wanted = {name: layers[-1] for name, layers in output.supervised.items()}
    wanted |= {"upsampled": output.upsampled, "target": batch.image}
    assert set(found["stages"]) == set(wanted)
    for name, image in wanted.items():
        np.testing.assert_allclose(
            found["stages"][name], in_input_units(image), atol=1e-4, err_msg=name
        )


def test_images_are_magnitudes_in_the_inputs_units(found_and_output):
    found, output, batch = found_and_output
    for name, image in (("reconstruction", output.image), ("target", batch.image)):
        real, imaginary = np.moveaxis(in_input_units(image), -1, 0)
        np.testing.assert_allclose(
            found["images"][name], np.hypot(real, imaginary), atol=1e-4, err_msg=name
        )
    np.testing.assert_array_equal(found["mask"], batch.mask)
