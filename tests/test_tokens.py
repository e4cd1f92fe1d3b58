"""Tokens and queries: a partition of the grid, padding, other grids."""

import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.errors import InputError
from kst_jax.patches import Layout


def slice_of(shape=(6, 5), share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    return rng.normal(size=(*shape, 2)).astype(np.float32), mask


def test_tokens_and_queries_partition_the_grid():
    kspace, mask = slice_of()
    t = tokens.tokenise(kspace, mask)
    np.testing.assert_array_equal(t["value"], kspace[mask])
    rows, columns = np.nonzero(mask)
    np.testing.assert_allclose(
        t["position"], np.stack([rows / 5, columns / 4], -1), atol=1e-7
    )
    assert sorted([*t["query"], *np.flatnonzero(mask)]) == list(range(30))
    assert (t["kspace"][~mask] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_were_not_sampled_change_nothing(value):
    kspace, mask = slice_of()
    found = tokens.tokenise(np.where(mask[..., None], kspace, value), mask)
    expected = tokens.tokenise(kspace, mask)
    for name in ("value", "kspace"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_filling_queries_restores_a_spectrum():
    slices = [slice_of(seed=s) for s in range(2)]
    layout = Layout.of(*(mask for _, mask in slices))
    assert layout.least != layout.most
    batch = tokens.batch_of([tokens.tokenise(k, m, layout) for k, m in slices])
    spectrum = jnp.asarray(np.stack([k for k, _ in slices]))
    values = tokens.at_queries(spectrum, batch.query)
    filled = tokens.fill(
        values, tokens.query_order(batch), batch.kspace, batch.acquisition
    )
    np.testing.assert_array_equal(filled, spectrum)


def test_padding_is_marked():
    kspace, mask = slice_of()
    n = int(mask.sum())
    t = tokens.tokenise(kspace, mask, Layout(n - 1, n + 3))
    assert t["value"].shape == (n + 3, 2)
    np.testing.assert_array_equal(t["valid"], [True] * n + [False] * 3)
    assert t["query"].shape == (30 - (n - 1),)


def test_bad_masks_are_refused():
    kspace, mask = slice_of()
    with pytest.raises(InputError, match="no point"):
        tokens.tokenise(kspace, np.zeros_like(mask))
    with pytest.raises(InputError, match="does not fit"):
        tokens.tokenise(kspace, mask[:-1])
    with pytest.raises(InputError, match="outside"):
        tokens.tokenise(kspace, mask, Layout(0, int(mask.sum()) - 1))
    with pytest.raises(InputError, match=r"complex64; give its real .*\(H, W, 2\)"):
        tokens.tokenise((kspace[..., 0] + 1j * kspace[..., 1]), mask)


@pytest.mark.parametrize("dtype", [int, float])
def test_masks_of_numbers_are_refused(dtype):
    mask = np.eye(8).astype(dtype)
    for function in (tokens.tokenise, lambda *x: tokens.regrid(*x, (8, 8))):
        with pytest.raises(InputError, match="give a bool mask, True where sampled"):
            function(np.zeros((8, 8, 2), np.float32), mask)


def test_regrid_to_the_same_grid_changes_nothing():
    kspace, mask = slice_of()
    same = tokens.regrid(kspace, mask, mask.shape)
    for name, value in tokens.tokenise(kspace, mask).items():
        np.testing.assert_array_equal(same[name], value)


def test_a_finer_grid_keeps_measured_values_where_coordinates_coincide():
    kspace, mask = slice_of((5, 5))
    fine = tokens.regrid(kspace, mask, (9, 9))
    np.testing.assert_array_equal(fine["mask"][::2, ::2], mask)
    assert fine["mask"].sum() == mask.sum()
    np.testing.assert_array_equal(fine["kspace"][::2, ::2][mask], kspace[mask])
    np.testing.assert_array_equal(fine["value"], kspace[mask])
    assert fine["query"].size == 81 - mask.sum()


def test_the_only_row_of_a_grid_is_the_first_of_a_finer_one():
    kspace, mask = slice_of((1, 5))
    found = tokens.regrid(kspace, mask, (3, 5))
    np.testing.assert_array_equal(found["mask"][:1], mask)
    assert not found["mask"][1:].any()
