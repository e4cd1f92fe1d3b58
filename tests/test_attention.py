import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from kst_jax.errors import InputError
from kst_jax.models import attention as attention_module
from kst_jax.models.attention import (
    attention,
    attention_weights,
    choose,
    has_fused_kernel,
)

pytestmark = pytest.mark.usefixtures("full_compilation")

FORMS = ["plain", "blocked"]
# B, M, L, K, C: odd sizes; one block of queries and several; a single query.
SHAPES = [(2, 333, 205, 2, 12), (1, 130, 515, 3, 64), (3, 1, 7, 1, 4), (1, 70, 5, 2, 8)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 queries, so that small inputs have several and a padded one."""
    for name in ("_CPU_BLOCK", "_ACCELERATOR_BLOCK"):
        monkeypatch.setattr(attention_module, name, 1)
    monkeypatch.setattr(attention_module, "_FEWEST_ROWS", 64)


def draw(shape, seed=0, dtype=np.float32, scale=1.0):
    """q, k, v, a cotangent of the output, and which keys are valid."""
    B, M, L, K, C = shape
    rng = np.random.default_rng(seed)
    q, k, v, g = (
        rng.standard_normal((B, n, K, C)).astype(np.float32) for n in (M, L, L, M)
    )
    valid = rng.random((B, L)) < 0.7
    valid[:, L // 2] = True
    q, k, v, g = (jnp.asarray(x, dtype) for x in (q * scale, k * scale, v, g))
    return q, k, v, g, jnp.asarray(valid)


def formula(q, k, v, g, valid=None):
    """Output and gradients in float64, written out by hand."""
    q, k, v, g = (np.float64(x).swapaxes(1, 2) for x in (q, k, v, g))
    s = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    if valid is not None:
        s = np.where(np.asarray(valid)[:, None, None], s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = g @ v.swapaxes(2, 3)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    dq, dk, dv = ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ g
    return [x.swapaxes(1, 2) for x in (p @ v, dq, dk, dv)]


def run(q, k, v, g, valid=None, implementation="blocked"):
    """Output and gradients of the code under test."""
    f = functools.partial(attention, valid_BxL=valid, implementation=implementation)

    @jax.jit
    def both(q, k, v):
        o, pullback = jax.vjp(f, q, k, v)
        return o, *pullback(g)

    return both(q, k, v)


def assert_close(got, want, tolerance=1e-5):
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        x, y = np.float64(x), np.float64(y)
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y) + 1e-30


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_output_and_gradients_equal_the_formula(form, shape, masked, small_blocks):
    q, k, v, g, valid = draw(shape)
    valid = valid if masked else None
    assert_close(run(q, k, v, g, valid, form), formula(q, k, v, g, valid), 3e-6)


def test_one_block_and_many_agree(monkeypatch):
    q, k, v, g, valid = draw((1, 200, 150, 2, 16))
    whole = run(q, k, v, g, valid)
    monkeypatch.setattr(attention_module, "_CPU_BLOCK", 70 * 150)
    monkeypatch.setattr(attention_module, "_FEWEST_ROWS", 1)
    assert_close(run(q, k, v, g, valid), whole, 1e-6)


def test_heads_together_as_on_accelerators(monkeypatch, small_blocks):
    monkeypatch.setattr(
        lax, "platform_dependent", lambda *args, default, **platforms: default(*args)
    )
    q, k, v, g, valid = draw(SHAPES[0])
    assert_close(run(q, k, v, g, valid), formula(q, k, v, g, valid), 3e-6)


@pytest.mark.parametrize("scale", [4.0, 60.0])
@pytest.mark.parametrize("form", FORMS)
def test_large_scores_neither_overflow_nor_lose_the_row(form, scale, small_blocks):
    q, k, v, g, valid = draw(SHAPES[0], scale=scale)
    s = attention_weights(q, k)
    assert s.max() > 0.99
    # float32 holds scores of 10^4 to 1e-3: so much the gradients may differ.
    want = formula(q, k, v, g, valid)
    assert_close(run(q, k, v, g, valid, form), want, 1e-6 * scale**2)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_a_common_offset_of_all_scores_changes_nothing(offset, small_blocks):
    q, k, v, g, valid = draw(SHAPES[0])
    want = formula(q, k, v, g, valid)[0]
    # One more channel, which adds `offset` to every score and nothing to the output.
    C = q.shape[-1]
    one = jnp.ones_like(q[..., :1])
    q = jnp.concatenate([q * np.sqrt((C + 1) / C), one], -1)
    k = jnp.pad(k, [(0, 0)] * 3 + [(0, 1)], constant_values=offset * np.sqrt(C + 1))
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, 1)])
    assert_close(
        [attention(q, k, v, valid, implementation="blocked")[..., :-1]], [want], 2e-3
    )


@pytest.mark.parametrize("form", FORMS)
def test_invalid_keys_change_nothing_and_get_no_gradient(form, small_blocks):
    q, k, v, g, valid = draw(SHAPES[0])
    clean = run(q, k, v, g, valid, form)
    junk = jnp.where(valid[..., None, None], 0.0, 1e30)
    dirty = run(q, k + junk, v - junk, g, valid, form)
    for x, y in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(x, y)
    invalid = ~np.asarray(valid)
    assert not np.any(np.asarray(dirty[2])[invalid])
    assert not np.any(np.asarray(dirty[3])[invalid])


@pytest.mark.parametrize("form", FORMS)
def test_queries_without_a_valid_key_get_zeros(form, small_blocks):
    q, k, v, g, valid = draw(SHAPES[0])
    valid = valid.at[1].set(False)
    o, *grads = run(q, k, v, g, valid, form)
    assert not np.any(o[1])
    assert np.any(o[0])
    assert all(np.isfinite(x).all() and not np.any(x[1]) for x in grads)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16(form, small_blocks):
    q, k, v, g, valid = draw(SHAPES[0], dtype=jnp.bfloat16)
    got = run(q, k, v, g, valid, form)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    assert_close(got, formula(q, k, v, g, valid), 1e-2)


def test_powers_of_two():
    x = np.linspace(-126, 127, 100_003, dtype=np.float32)
    got = np.float64(attention_module._exp2(jnp.asarray(x)))
    np.testing.assert_allclose(got, np.exp2(np.float64(x)), rtol=3e-7)
    assert np.isnan(attention_module._exp2(jnp.float32(np.nan)))


def test_weights_are_the_softmax():
    q, k, v, g, valid = draw(SHAPES[0])
    assert attention_weights(q.astype(jnp.bfloat16), k).dtype == jnp.float32
    w_BxKxMxL = np.asarray(attention_weights(q, k, valid.at[1].set(False)))
    np.testing.assert_allclose(w_BxKxMxL[0].sum(-1), 1, rtol=1e-5)
    assert not np.any(w_BxKxMxL[0][..., ~np.asarray(valid[0])])
    assert not np.any(w_BxKxMxL[1])
    o = np.einsum("bkml,blkc->bmkc", w_BxKxMxL, v)
    assert_close([o[0]], [formula(q, k, v, g, valid)[0][0]])


@pytest.mark.slow
def test_inside_scan_and_checkpoint(small_blocks):
    q, k, v, g, valid = draw(SHAPES[0])
    scales = jnp.array([0.9, 1.1, 1.3])

    def decoder(form, rolled):
        def layer(q, scale):
            return q + attention(q * scale, k, v, valid, implementation=form), None

        def loss(q, scales):
            if rolled:
                return (lax.scan(jax.checkpoint(layer), q, scales)[0] * g).sum()
            for scale in scales:
                q, _ = layer(q, scale)
            return (q * g).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(q, scales)

    assert_close(decoder("blocked", rolled=True), decoder("plain", rolled=False))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_shard_map_with_queries_that_do_not_vary(form, small_blocks):
    """Constant queries, keys of every device its own: gradients as on one device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    q, k, v, g, valid = draw((8, 70, 50, 2, 8))
    q, g = q[:1], g[:1]  # replicated, as positions or parameters are

    def grads(q, k, v, valid, mean):
        def loss(q, k, v):
            every = (k.shape[0], *q.shape[1:])
            o = attention(jnp.broadcast_to(q, every), k, v, valid, implementation=form)
            return mean(jnp.mean(o**2 * g))

        return jax.grad(loss, (0, 1, 2))(q, k, v)

    step = jax.shard_map(
        functools.partial(grads, mean=lambda x: lax.pmean(x, "data")),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data")),
        out_specs=(P(), P("data"), P("data")),
    )
    one_device = jax.jit(functools.partial(grads, mean=lambda x: x))(q, k, v, valid)
    assert_close(jax.jit(step)(q, k, v, valid), one_device, 3e-6)


@pytest.mark.parametrize(
    ("fused", "dtype", "shape", "keys", "expected"),
    [
        (True, jnp.bfloat16, (1, 13107, 4, 64), 4096, "cudnn"),
        (True, jnp.float16, (4, 64, 4, 16), 64, "cudnn"),
        (True, jnp.float32, (1, 13107, 4, 64), 4096, "blocked"),
        (True, jnp.bfloat16, (1, 13107, 4, 12), 4096, "blocked"),
        (True, jnp.bfloat16, (1, 13107, 2, 136), 4096, "blocked"),
        (False, jnp.bfloat16, (1, 13107, 4, 64), 4096, "blocked"),
        (False, jnp.float32, (4, 128, 4, 16), 128, "plain"),
        (False, jnp.float32, (4, 129, 4, 16), 128, "blocked"),
    ],
)
def test_choice(fused, dtype, shape, keys, expected):
    assert choose(fused, dtype, shape, keys) == expected


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"compute_capability": "8.0"}, True),
        ({"compute_capability": "10.0"}, True),
        ({"compute_capability": "7.5"}, False),
        ({"compute_capability": "gfx90a"}, False),
        ({}, False),
    ],
)
def test_devices_with_the_fused_kernel(device, expected):
    assert has_fused_kernel(SimpleNamespace(**device)) == expected


def test_auto_takes_the_choice(monkeypatch):
    taken = []
    for name in FORMS:
        monkeypatch.setitem(
            attention_module.IMPLEMENTATIONS,
            name,
            lambda *_, name=name: taken.append(name),
        )
    for shape in (SHAPES[2], SHAPES[0]):
        q, k, v, _, _ = draw(shape)
        attention(q, k, v)
    assert taken == ["plain", "blocked"]


def test_unknown_implementation_names_the_known():
    q, k, v, _, _ = draw(SHAPES[2])
    with pytest.raises(
        ValueError, match="'flash' is unknown; use one of auto, plain, blocked"
    ):
        attention(q, k, v, implementation="flash")
    with pytest.raises(InputError, match="NVIDIA"):
        attention(q, k, v, implementation="cudnn")


def test_lengths_given_to_the_fused_kernel(monkeypatch):
    """The kernel itself needs a GPU: XLA's form takes the same arguments."""
    fused = jax.nn.dot_product_attention
    monkeypatch.setattr(attention_module, "has_fused_kernel", lambda _: True)
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *args, implementation, **kw: fused(*args, implementation="xla", **kw),
    )
    q, k, v, g, valid = draw(SHAPES[0])
    for mask in (None, valid):
        got = run(q, k, v, g, mask, "cudnn")
        assert_close(got, formula(q, k, v, g, mask), 3e-6)
    o, *grads = run(q, k, v, g, valid.at[1].set(False), "cudnn")
    assert not np.any(o[1])
    assert all(np.isfinite(x).all() for x in grads)


@pytest.mark.parametrize("platforms", [("cuda",), ("tpu",), ("cpu", "cuda", "tpu")])
def test_lowers_for_accelerators(platforms):
    q, k, v, g, valid = draw((1, 300, 200, 2, 16))

    def both(q, k, v):
        o, pullback = jax.vjp(
            lambda *x: attention(*x, valid, implementation="blocked"), q, k, v
        )
        return o, pullback(g)

    exported = jax.export.export(jax.jit(both), platforms=platforms)(q, k, v)
    assert exported.platforms == platforms
    if "cpu" in platforms:
        o, grads = exported.call(q, k, v)
        assert_close([o, *grads], formula(q, k, v, g, valid), 3e-6)


@pytest.mark.parametrize("together", [False, True])
def test_memory_stays_far_below_the_whole_matrix(together, monkeypatch):
    if together:
        monkeypatch.setattr(
            lax, "platform_dependent", lambda *xs, default, **platforms: default(*xs)
        )
    # As many queries as 32 blocks of a head have.
    M, L, K, C = 2**17 if together else 2**13, 4096, 2, 16
    q, k = (jax.ShapeDtypeStruct((1, n, K, C), jnp.float32) for n in (M, L))

    def temporary(form, f):
        f = functools.partial(f, functools.partial(attention, implementation=form))
        return jax.jit(f).lower(q, k, k).compile().memory_analysis().temp_size_in_bytes

    def gradients(attend, q, k, v):
        return jax.grad(lambda *x: (attend(*x) ** 2).sum(), (0, 1, 2))(q, k, v)

    whole = 4 * K * M * L
    assert temporary("plain", gradients) > whole
    for f in (gradients, lambda attend, *x: attend(*x)):
        assert temporary("blocked", f) < whole / 8
