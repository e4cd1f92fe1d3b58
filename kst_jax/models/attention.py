"""Exact softmax attention that holds one block of the weights at a time.

Letters as in `kst_jax.models`; here: M queries, L keys, K heads, C channels of a head,
m queries of one block. Scores are scaled by 1 / sqrt(C). A key whose `valid_BxL` is
False is ignored entirely, and a query without any valid key gets zeros.

The blocked form processes a block of a head's queries at a time, with all keys. It
keeps only the logarithm of the softmax denominator, from which the backward pass
recomputes each block of weights once (Rabe and Staats, arXiv 2112.05682; Dao et al.,
arXiv 2205.14135).
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kst_jax.errors import InputError
from kst_jax.models.rematerialisation import keep

# Up to this many weights (B K M L) per call the textbook formula is as fast.
PLAIN_UP_TO = 2**18
# Weights per block, but never fewer queries than the next constant says. On a CPU 1 MiB
# of float32, which fits its cache: at 1,024 keys and 16 channels four times as much
# costs 28 % forward. Elsewhere 64 MiB per head, since small products leave a GPU idle:
# at the paper's size an H100 takes 2 times (train step) to 2.8 times (forward) as long
# with blocks of 2^20.
_CPU_BLOCK, _ACCELERATOR_BLOCK = 2**18, 2**24
# With half as many, products of a block are slower: 6 % forward at 4,096 keys.
_FEWEST_ROWS = 256
# Scores (in powers of two) up to here do not need the maximum subtracted: 2^60 times
# the number of keys, and its inverse, are well within the range of float32.
_SAFE = 60.0
_LOWEST = -1e30  # below every score, yet finite: no NaN if no key is valid
# 2^x on [-1/2, 1/2] to 2e-7.
_EXP2 = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5]).convert(
    kind=np.polynomial.Polynomial
)


def has_fused_kernel(device: jax.Device) -> bool:
    """Returns whether a device can run cuDNN's kernel: NVIDIA Ampere (8.0) or later."""
    # "8.0", or "gfx90a" on AMD GPUs; TPUs and CPUs have none.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return major.isdecimal() and int(major) >= 8


def choose(
    fused: bool, dtype: jax.typing.DTypeLike, q_shape: tuple[int, ...], keys: int
) -> str:
    """Returns the name of the implementation that "auto" stands for.

    Args:
      fused: whether the device has the fused kernel.
      dtype: dtype of the queries.
      q_shape: shape (B, M, K, C) of the queries.
      keys: number of keys L.
    """
    B, M, K, C = q_shape
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if fused and half and C % 8 == 0 and C <= 128:
        return "cudnn"
    return "plain" if B * K * M * keys <= PLAIN_UP_TO else "blocked"


def attention(
    q_BxMxKxC: Array,
    k_BxLxKxC: Array,
    v_BxLxKxC: Array,
    valid_BxL: Array | None = None,
    *,
    implementation: str = "auto",
) -> Array:
    """Computes softmax(q k^T / sqrt(C)) v for every head.

    Statistics and sums are float32 for inputs of any dtype. "auto" is resolved when
    traced, for the default backend: a program exported on a CPU for other platforms
    contains the portable form.

    Args:
      q_BxMxKxC: queries, float32, bfloat16 or float16.
      k_BxLxKxC: keys.
      v_BxLxKxC: values.
      valid_BxL: bool, False for keys to ignore; None if all count.
      implementation: a key of `IMPLEMENTATIONS`, or "auto" to let `choose` decide.

    Returns:
      o_BxMxKxC in the dtype of the queries.

    Raises:
      InputError: the implementation is unknown, or the default device cannot run it.
    """
    fused, keys = has_fused_kernel(jax.local_devices()[0]), k_BxLxKxC.shape[1]
    if implementation == "auto":
        implementation = choose(fused, q_BxMxKxC.dtype, q_BxMxKxC.shape, keys)
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(["auto", *IMPLEMENTATIONS])
        raise InputError(f"attention {implementation!r} is unknown; use one of {names}")
    if implementation == "cudnn" and not fused:
        raise InputError(
            "model.attention=cudnn needs an NVIDIA GPU, Ampere or later; use "
            "model.attention=auto"
        )
    if valid_BxL is not None:
        # A weight of zero would not silence a huge value, nor its gradient.
        valid = valid_BxL[..., None, None]
        k_BxLxKxC, v_BxLxKxC = (jnp.where(valid, x, 0) for x in (k_BxLxKxC, v_BxLxKxC))
    return IMPLEMENTATIONS[implementation](q_BxMxKxC, k_BxLxKxC, v_BxLxKxC, valid_BxL)


def attention_weights(
    q_BxMxKxC: Array, k_BxLxKxC: Array, valid_BxL: Array | None = None
) -> Array:
    """Returns the softmax itself, w_BxKxMxL in float32; rows without a key are zero."""
    s_BxKxMxL = jnp.einsum(
        "bmkc,blkc->bkml", q_BxMxKxC, k_BxLxKxC, preferred_element_type=jnp.float32
    )
    s_BxKxMxL *= q_BxMxKxC.shape[-1] ** -0.5
    if valid_BxL is None:
        return jax.nn.softmax(s_BxKxMxL)
    valid = valid_BxL[:, None, None]
    return jnp.where(valid, jax.nn.softmax(jnp.where(valid, s_BxKxMxL, _LOWEST)), 0)


def plain_attention(
    q_BxMxKxC: Array,
    k_BxLxKxC: Array,
    v_BxLxKxC: Array,
    valid_BxL: Array | None = None,
) -> Array:
    """Computes `attention` by the textbook formula on the whole matrix of weights."""
    w_BxKxMxL = attention_weights(q_BxMxKxC, k_BxLxKxC, valid_BxL)
    w_BxKxMxL = w_BxKxMxL.astype(v_BxLxKxC.dtype)
    o_BxMxKxC = jnp.einsum(
        "bkml,blkc->bmkc", w_BxKxMxL, v_BxLxKxC, preferred_element_type=jnp.float32
    )
    return o_BxMxKxC.astype(q_BxMxKxC.dtype)


def _cudnn_attention(
    q_BxMxKxC: Array, k_BxLxKxC: Array, v_BxLxKxC: Array, valid_BxL: Array | None
) -> Array:
    lengths_B = None
    if valid_BxL is not None:
        # The kernel takes either a mask as large as the weights or a length. The order
        # of keys is free, so the valid ones go first and we give their number. If none
        # is valid, one key remains, which is zero like its value.
        order = jnp.argsort(~valid_BxL, axis=1)[..., None, None]
        k_BxLxKxC = jnp.take_along_axis(k_BxLxKxC, order, axis=1)
        v_BxLxKxC = jnp.take_along_axis(v_BxLxKxC, order, axis=1)
        lengths_B = jnp.maximum(valid_BxL.sum(1, dtype=jnp.int32), 1)
    fused = partial(jax.nn.dot_product_attention, implementation="cudnn")
    return fused(q_BxMxKxC, k_BxLxKxC, v_BxLxKxC, key_value_seq_lengths=lengths_B)


def _blocked_attention(
    q_BxMxKxC: Array, k_BxLxKxC: Array, v_BxLxKxC: Array, valid_BxL: Array | None
) -> Array:
    inputs = q_BxMxKxC, k_BxLxKxC, v_BxLxKxC
    # Adding zeros makes all three vary over the same axes of a `shard_map`, so that
    # gradients are summed over devices out here and not in the custom rule.
    q, k, v = (jnp.zeros_like(x[:, 0]) for x in inputs)
    zero_BxKxC = q + k + v
    q_BxKxMxC, k_BxKxLxC, v_BxKxLxC = (
        jnp.moveaxis(x + zero_BxKxC[:, None].astype(x.dtype), 2, 1) for x in inputs
    )
    bias_BxL = (
        None if valid_BxL is None else jnp.where(valid_BxL, jnp.float32(0), _LOWEST)
    )
    return jnp.moveaxis(_attend(q_BxKxMxC, k_BxKxLxC, v_BxKxLxC, bias_BxL), 1, 2)


IMPLEMENTATIONS = {
    "plain": plain_attention,
    "blocked": _blocked_attention,
    "cudnn": _cudnn_attention,
}


@jax.custom_vjp
def _attend(
    q_BxKxMxC: Array, k_BxKxLxC: Array, v_BxKxLxC: Array, bias_BxL: Array | None
) -> Array:
    return _forward(q_BxKxMxC, k_BxKxLxC, v_BxKxLxC, bias_BxL)[0]


def _forward(
    q_BxKxMxC: Array, k_BxKxLxC: Array, v_BxKxLxC: Array, bias_BxL: Array | None
) -> tuple[Array, tuple]:
    inputs = q_BxKxMxC, k_BxKxLxC, v_BxKxLxC
    heads = _forward_head_of_cpu, _forward_head
    outputs = _each_head(*heads, bias_BxL, *inputs)
    o_BxKxMxC, lse_BxKxM = map(keep, outputs)
    return o_BxKxMxC, (*inputs, bias_BxL, o_BxKxMxC, lse_BxKxM)


def _backward(kept: tuple, do_BxKxMxC: Array) -> tuple:
    *inputs, bias_BxL, o_BxKxMxC, lse_BxKxM = kept
    outputs = o_BxKxMxC, lse_BxKxM, do_BxKxMxC
    heads = _backward_head, _backward_head
    return *_each_head(*heads, bias_BxL, *inputs, *outputs), None


_attend.defvjp(_forward, _backward)


def _each_head(
    of_cpu: Callable, of_others: Callable, bias_BxL: Array | None, *arrays: Array
) -> tuple:
    """Maps over batch and heads; a CPU takes one head at a time, to fit its cache."""
    keys = arrays[1].shape[2]

    def example(bias_L: Array | None, *arrays: Array) -> tuple:
        return lax.platform_dependent(
            *arrays,
            cpu=lambda *arrays: lax.map(
                lambda one: of_cpu(_CPU_BLOCK // keys, bias_L, *one), arrays
            ),
            default=jax.vmap(partial(of_others, _ACCELERATOR_BLOCK // keys, bias_L)),
        )

    return lax.map(lambda one: example(*one), (bias_BxL, *arrays))


def _forward_head(
    rows: int,
    bias_L: Array | None,
    q_MxC: Array,
    k_LxC: Array,
    v_LxC: Array,
    *,
    maximum: bool = True,
) -> tuple[Array, Array]:
    """Returns o_MxC and the base-2 logarithm of each query's denominator, lse_M.

    Without `maximum`, scores must not exceed `_SAFE`.
    """
    k32_LxC, v32_LxC = k_LxC.astype(jnp.float32), v_LxC.astype(jnp.float32)

    def block(_: None, inputs: tuple) -> tuple[None, tuple]:
        s_mxL = _scores(_scaled(inputs[0]), k32_LxC, bias_L)
        top_m = s_mxL.max(-1) if maximum else jnp.zeros_like(s_mxL[:, 0])
        p_mxL = _exp2(s_mxL - top_m[:, None])
        total_m = p_mxL.sum(-1)
        o_mxC = p_mxL @ v32_LxC / total_m[:, None]
        return None, (o_mxC.astype(q_MxC.dtype), top_m + jnp.log2(total_m))

    return _scan_blocks(block, None, (q_MxC,), rows)[1]


def _forward_head_of_cpu(
    rows: int, bias_L: Array | None, q_MxC: Array, k_LxC: Array, v_LxC: Array
) -> tuple[Array, Array]:
    """`_forward_head`, which omits the maximum if it is not needed.

    By Cauchy-Schwarz no score exceeds the product of the largest norms, which is
    usually small. The maximum takes 15 to 25 % of the time.
    """
    reach = _norms(_scaled(q_MxC)).max() * _norms(k_LxC.astype(jnp.float32)).max()
    without, with_maximum = (
        partial(_forward_head, rows, bias_L, maximum=maximum)
        for maximum in (False, True)
    )
    return lax.cond(reach <= _SAFE, without, with_maximum, q_MxC, k_LxC, v_LxC)


def _backward_head(
    rows: int,
    bias_L: Array | None,
    q_MxC: Array,
    k_LxC: Array,
    v_LxC: Array,
    o_MxC: Array,
    lse_M: Array,
    do_MxC: Array,
) -> tuple[Array, Array, Array]:
    """Returns the gradients dq_MxC, dk_LxC, dv_LxC."""
    k32_LxC, v32_LxC = k_LxC.astype(jnp.float32), v_LxC.astype(jnp.float32)

    def block(sums: tuple, inputs: tuple) -> tuple[tuple, Array]:
        dk_CxL, dv_CxL = sums
        q_mxC, lse_m, do_mxC, delta_m = inputs
        q_mxC = _scaled(q_mxC)
        p_mxL = _exp2(_scores(q_mxC, k32_LxC, bias_L) - lse_m[:, None])
        ds_mxL = p_mxL * (do_mxC @ v32_LxC.T - delta_m[:, None])
        dq_mxC = ds_mxL @ k32_LxC
        return (dk_CxL + q_mxC.T @ ds_mxL, dv_CxL + do_mxC.T @ p_mxL), dq_mxC

    zeros_CxL = jnp.zeros_like(v32_LxC.T)
    do32_MxC = do_MxC.astype(jnp.float32)
    given = q_MxC, lse_M, do32_MxC, (do32_MxC * o_MxC).sum(-1)
    sums, dq_MxC = _scan_blocks(block, (zeros_CxL, zeros_CxL), given, rows)
    # Sums stay transposed, (C, L): on a CPU, a product that contracts the rows of both
    # factors into (L, C) takes three times as long. Without the barrier XLA would
    # rewrite a single block to that form.
    dk_CxL, dv_CxL = lax.optimization_barrier(sums)
    dq_MxC, dk_LxC = _scaled(dq_MxC) * math.log(2), dk_CxL.T * math.log(2)
    return (
        dq_MxC.astype(q_MxC.dtype),
        dk_LxC.astype(k_LxC.dtype),
        dv_CxL.T.astype(v_LxC.dtype),
    )


def _scan_blocks(
    block: Callable, carry: tuple | None, arrays: tuple[Array, ...], rows: int
) -> tuple:
    """Scans `block` over the rows of `arrays` (M, ...), about `rows` at a time."""
    M = arrays[0].shape[0]
    blocks = -(-M // max(rows, _FEWEST_ROWS))
    rows = -(-M // blocks)  # so that padding adds fewer rows than there are blocks

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, blocks * rows - M)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(blocks, rows, *x.shape[1:])

    carry, outputs = lax.scan(block, carry, tuple(split(x) for x in arrays))
    return carry, jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:M], outputs)


def _scaled(q_mxC: Array) -> Array:
    """Scales queries so that weights are powers of two, 2^score."""
    return q_mxC.astype(jnp.float32) * (q_mxC.shape[-1] ** -0.5 / math.log(2))


def _scores(q_mxC: Array, k_LxC: Array, bias_L: Array | None) -> Array:
    s_mxL = q_mxC @ k_LxC.T
    return s_mxL if bias_L is None else s_mxL + bias_L[None]


def _norms(x_nxC: Array) -> Array:
    return jnp.sqrt((x_nxC * x_nxC).sum(-1))


def _exp2(x: Array) -> Array:
    """Returns 2^x to 2e-7, clamped to the smallest and largest normal number.

    Twice as fast on a CPU as XLA's: 2^(x - n) is a polynomial, and the nearest integer
    n goes straight into the exponent's bits.
    """
    x = jnp.clip(x, -126.0, 127.0)
    n = jnp.round(x)
    p = jnp.polyval(jnp.asarray(_EXP2.coef[::-1], jnp.float32), x - n)
    bits = lax.bitcast_convert_type(p, jnp.int32) + (n.astype(jnp.int32) << 23)
    return lax.bitcast_convert_type(bits, jnp.float32)
