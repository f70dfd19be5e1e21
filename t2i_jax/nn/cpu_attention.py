"""Softmax attention in the form that is fast on a CPU.

XLA by itself makes one slow piece of scores, softmax and transposes. Here barriers keep them apart:
products of matrices that lie together in memory, the softmax between them, and the division by its
sum last, where the numbers are few. Of the products of the gradient none turns the matrix of scores
around. Many scores are made in blocks, and again for the gradient, so that they stay in a cache.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax.nn.row_sums import sum_of_rows
from t2i_jax.types import Array

MASKED = -1e30  # a masked score: the softmax turns it into exactly 0

_MOST_SCORES = 2**23  # of a block: 32 MB of float32


def attention(
    scale: float,
    q_BQHD: Array,
    k_BKGD: Array,
    v_BKGD: Array,
    seen: Array | None,
    bias_HQK: Array | None,
) -> Array:
    """As `dot_product.attention`."""
    given = {"seen": seen, "bias": None if bias_HQK is None else bias_HQK[None]}
    given = {name: array for name, array in given.items() if array is not None}
    q_BQHD = q_BQHD * jnp.asarray(scale, q_BQHD.dtype)
    k_BGKD, v_BGKD = (t.swapaxes(1, 2) for t in (k_BKGD, v_BKGD))
    if k_BGKD.shape[1] > 1:
        return _by_rows(q_BQHD.swapaxes(1, 2), k_BGKD, v_BGKD, given).swapaxes(1, 2)
    # The queries of all heads meet the same keys: they stay as they lie, (B, Q, H, D).
    given = {name: array.swapaxes(1, 2) for name, array in given.items()}
    return _by_rows(q_BQHD, k_BGKD, v_BGKD, given)


@jax.custom_vjp
def _by_rows(q_BNMD, k_BGKD, v_BGKD, given):
    """Attention of which N and M are heads and queries, and G = N; or queries and heads, and G = 1;
    arrays that are `given` are broadcastable to (B, N, M, K).
    """
    return _forward(q_BNMD, k_BGKD, v_BGKD, given)[0]


def _forward(q_BNMD, k_BGKD, v_BGKD, given):
    """(the result, what the gradient needs)."""
    arrays = {"q": q_BNMD, "k": k_BGKD, "v": v_BGKD, **given}
    count = _blocks(q_BNMD, k_BGKD)
    if count == 1:
        out_BNMD, softmax = _attended(arrays)
        return out_BNMD, (arrays, softmax, out_BNMD)
    parts, whole = _split(arrays, count)
    out_BNMD = _joined(jax.lax.map(lambda part: _attended({**whole, **part})[0], parts))
    return out_BNMD, (arrays, None, out_BNMD)


def _backward(kept, gradient_BNMD):
    arrays, softmax, out_BNMD = kept
    if softmax is not None:
        found = _gradients(arrays, softmax, out_BNMD, gradient_BNMD)
    else:
        found = _gradients_of_blocks(arrays, out_BNMD, gradient_BNMD)
    q, k, v = (found.pop(name) for name in "qkv")
    return q, k, v, {name: found.get(name) for name in arrays if name not in "qkv"}


_by_rows.defvjp(_forward, _backward)

_apart = jax.lax.optimization_barrier


def _blocks(q_BNMD, k_BGKD):
    """How many blocks of N there are: the fewest that divide it and have few scores each; one where
    devices share the arrays.
    """
    (rows, several, each, _), keys = q_BNMD.shape, k_BGKD.shape[2]
    if not jax.sharding.get_abstract_mesh().empty:
        return 1
    least = math.ceil(rows * several * each * keys / _MOST_SCORES)
    return next(n for n in range(min(least, several), several + 1) if several % n == 0)


def _split(arrays, count):
    """(the blocks of the arrays that have N, along a first axis; those that all blocks share)."""
    parts, whole = {}, {}
    for name, array in arrays.items():
        if array.shape[1] == 1:
            whole[name] = array
        else:
            parts[name] = rearrange(array, "b (c n) ... -> c b n ...", c=count)
    return parts, whole


def _joined(blocks):
    return rearrange(blocks, "c b n ... -> b (c n) ...")


def _gradients_of_blocks(arrays, out_BNMD, gradient_BNMD):
    """The gradients of the arrays, one block after the other."""
    count = _blocks(arrays["q"], arrays["k"])
    parts, whole = _split(arrays, count)
    more, _ = _split({"out": out_BNMD, "gradient": gradient_BNMD}, count)

    def of_block(sums, block):
        part, beside = block
        given = {**whole, **part}
        _, softmax = _attended(given)
        found = _gradients(given, softmax, beside["out"], beside["gradient"])
        sums = {name: sums[name] + found.pop(name) for name in sums}
        return sums, found

    sums = {name: jnp.zeros_like(array) for name, array in whole.items() if name != "seen"}
    sums, found = jax.lax.scan(of_block, sums, (parts, more))
    return {**sums, **{name: _joined(array) for name, array in found.items()}}


def _attended(arrays):
    """(out (B, N, M, D), (e to the scores, its sum over the keys))."""
    q_BNMD, k_BGKD, v_BGKD = _apart(tuple(arrays[name] for name in "qkv"))
    scores_BNMK = _product(q_BNMD, k_BGKD.swapaxes(2, 3))
    if "bias" in arrays:
        scores_BNMK = scores_BNMK + arrays["bias"]
    if "seen" in arrays:
        scores_BNMK = jnp.where(arrays["seen"], scores_BNMK, MASKED)
    top_BNM1 = _apart(jnp.max(scores_BNMK, axis=-1, keepdims=True))
    e_BNMK = _apart(jnp.exp(scores_BNMK - top_BNM1))
    total_BNM1 = _apart(jnp.sum(e_BNMK, axis=-1, keepdims=True))
    out_BNMD = _product(e_BNMK.astype(v_BGKD.dtype), v_BGKD) / total_BNM1
    return _apart(out_BNMD.astype(v_BGKD.dtype)), (e_BNMK, total_BNM1)


def _gradients(arrays, softmax, out_BNMD, gradient_BNMD):
    """Of q, k, v and the bias, by name."""
    q_BNMD, k_BGKD, v_BGKD = (arrays[name] for name in "qkv")
    (e_BNMK, total_BNM1), dtype, groups = softmax, v_BGKD.dtype, k_BGKD.shape[1]
    g_BNMD = _apart((gradient_BNMD / total_BNM1).astype(dtype))
    along_BNM1 = _apart(jnp.sum((g_BNMD * out_BNMD).astype(jnp.float32), axis=-1, keepdims=True))
    scores_BNMK = e_BNMK * (_product(g_BNMD, v_BGKD.swapaxes(2, 3)) - along_BNM1)
    if "seen" in arrays:  # of a query that sees none
        scores_BNMK = jnp.where(arrays["seen"], scores_BNMK, 0.0)
    scores_BNMK = _apart(scores_BNMK)
    narrow_BNMK = scores_BNMK.astype(dtype)
    found = {
        "q": _product(narrow_BNMK, k_BGKD).astype(dtype),
        "k": _over_rows(q_BNMD, narrow_BNMK, groups),
        "v": _over_rows(g_BNMD, e_BNMK.astype(dtype), groups),
    }
    return found | ({"bias": sum_of_rows(scores_BNMK)[None]} if "bias" in arrays else {})


def _product(x_BNMX, y_BGXY):
    """(B, N, M, Y) float32: the rows of N and M of x, of which each group has its own y."""
    rows_BGRX = x_BNMX.reshape(*y_BGXY.shape[:2], -1, x_BNMX.shape[-1])
    out_BGRY = _apart(jnp.matmul(rows_BGRX, y_BGXY, preferred_element_type=jnp.float32))
    return out_BGRY.reshape(*x_BNMX.shape[:3], -1)


def _over_rows(x_BNMD, y_BNMK, groups):
    """(B, G, K, D): of each group the sum of y x over its rows. The smaller of the two arrays is
    turned around.
    """
    x_BGRD, y_BGRK = (t.reshape(len(t), groups, -1, t.shape[-1]) for t in (x_BNMD, y_BNMK))
    small, large = (x_BGRD, y_BGRK) if x_BGRD.shape[-1] < y_BGRK.shape[-1] else (y_BGRK, x_BGRD)
    turned = _apart(small.swapaxes(2, 3))
    out = _apart(jnp.matmul(turned, large, preferred_element_type=jnp.float32))
    return (out.swapaxes(2, 3) if small is x_BGRD else out).astype(x_BNMD.dtype)
