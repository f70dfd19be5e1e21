"""Softmax attention that holds its scores, in the form that is fast on the platform."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from t2i_jax.types import Array

MASKED = -1e30  # a masked score: the softmax turns it into exactly 0


def attention(
    q_BQHD: Array,
    k_BKGD: Array,
    v_BKGD: Array,
    seen: Array | None = None,
    bias_HQK: Array | None = None,
    scale: float | None = None,
) -> Array:
    """softmax(scale q k + bias) v, (B, Q, H, D), of the values' dtype; the softmax is float32.

    Args:
      k_BKGD, v_BKGD: one per head, or one for all heads (G = 1).
      seen: bool, broadcastable to (B, H, Q, K), True where a query sees a key; a query that sees
        none gets the mean of all values. None: every query sees every key.
      bias_HQK: None: none. scale: None: 1 / sqrt(D).
    """
    scale = q_BQHD.shape[-1] ** -0.5 if scale is None else scale
    given = {"seen": seen, "bias": bias_HQK}
    given = {name: array for name, array in given.items() if array is not None}
    on_cpu, elsewhere = (functools.partial(form, scale) for form in (_in_pieces, _whole))
    return jax.lax.platform_dependent(q_BQHD, k_BKGD, v_BKGD, given, cpu=on_cpu, default=elsewhere)


def _whole(scale, q_BQHD, k_BKGD, v_BKGD, given):
    if k_BKGD.shape[2] == 1 and not given:  # one product for all heads
        k_BKD, v_BKD = k_BKGD[:, :, 0], v_BKGD[:, :, 0]
        scores_BQHK = jnp.einsum(
            "BQHD,BKD->BQHK", q_BQHD, k_BKD, preferred_element_type=jnp.float32
        )
        weights_BQHK = jax.nn.softmax(scores_BQHK * scale).astype(v_BKD.dtype)
        return jnp.einsum("BQHK,BKD->BQHD", weights_BQHK, v_BKD)
    bias = given["bias"][None] if "bias" in given else None
    return jax.nn.dot_product_attention(
        q_BQHD, k_BKGD, v_BKGD, bias=bias, mask=given.get("seen"), scale=scale
    )


def _in_pieces(scale, q_BQHD, k_BKGD, v_BKGD, given):
    """Left to itself, XLA on a CPU makes one slow piece of scores, softmax and transposes."""
    arrays = q_BQHD * jnp.asarray(scale, q_BQHD.dtype), k_BKGD, v_BKGD
    if k_BKGD.shape[2] > 1:
        return _by_rows(*(t.swapaxes(1, 2) for t in arrays), given).swapaxes(1, 2)
    # The queries of all heads meet the same keys: they stay as they lie, (B, Q, H, D).
    q, k, v = arrays[0], arrays[1].swapaxes(1, 2), arrays[2].swapaxes(1, 2)
    return _by_rows(q, k, v, {name: array.swapaxes(-3, -2) for name, array in given.items()})


@jax.custom_vjp
def _by_rows(q_BNMD, k_BGKD, v_BGKD, given):
    """Attention of which N and M are heads and queries, and G = N; or queries and heads, and G = 1;
    arrays that are `given` are (..., N, M, K).

    Barriers keep its pieces apart: products of matrices that lie together in memory, the softmax
    between them, and the division by its sum last, where the numbers are few. Of the products of
    the gradient none turns the matrix of scores around.
    """
    return _forward(q_BNMD, k_BGKD, v_BGKD, given)[0]


def _forward(q_BNMD, k_BGKD, v_BGKD, given):
    q_BNMD, k_BGKD, v_BGKD = _apart((q_BNMD, k_BGKD, v_BGKD))
    scores_BNMK = _product(q_BNMD, k_BGKD.swapaxes(2, 3))
    if "bias" in given:
        scores_BNMK = scores_BNMK + given["bias"]
    if "seen" in given:
        scores_BNMK = jnp.where(given["seen"], scores_BNMK, MASKED)
    top_BNM1 = _apart(jnp.max(scores_BNMK, axis=-1, keepdims=True))
    e_BNMK = _apart(jnp.exp(scores_BNMK - top_BNM1))
    total_BNM1 = _apart(jnp.sum(e_BNMK, axis=-1, keepdims=True))
    out_BNMD = _product(e_BNMK.astype(v_BGKD.dtype), v_BGKD) / total_BNM1
    out_BNMD = _apart(out_BNMD.astype(v_BGKD.dtype))
    return out_BNMD, (q_BNMD, k_BGKD, v_BGKD, given, e_BNMK, total_BNM1, out_BNMD)


def _backward(kept, gradient_BNMD):
    q_BNMD, k_BGKD, v_BGKD, given, e_BNMK, total_BNM1, out_BNMD = kept
    dtype, groups = v_BGKD.dtype, k_BGKD.shape[1]
    g_BNMD = _apart((gradient_BNMD / total_BNM1).astype(dtype))
    along_BNM1 = _apart(jnp.sum((g_BNMD * out_BNMD).astype(jnp.float32), axis=-1, keepdims=True))
    scores_BNMK = e_BNMK * (_product(g_BNMD, v_BGKD.swapaxes(2, 3)) - along_BNM1)
    if "seen" in given:  # of a query that sees none
        scores_BNMK = jnp.where(given["seen"], scores_BNMK, 0.0)
    scores_BNMK = _apart(scores_BNMK)
    narrow_BNMK = scores_BNMK.astype(dtype)
    of_given = dict.fromkeys(given)
    if "bias" in given:
        of_given["bias"] = sum_of_rows(scores_BNMK)
    return (
        _product(narrow_BNMK, k_BGKD).astype(dtype),
        _over_rows(q_BNMD, narrow_BNMK, groups),
        _over_rows(g_BNMD, e_BNMK.astype(dtype), groups),
        of_given,
    )


_by_rows.defvjp(_forward, _backward)

_apart = jax.lax.optimization_barrier


def _product(x_BNMX, y_BGXY):
    """(B, N, M, Y) float32: the rows of N and M of x, of which each group has its own y."""
    rows_BGRX = x_BNMX.reshape(*y_BGXY.shape[:2], -1, x_BNMX.shape[-1])
    out_BGRY = _apart(jnp.matmul(rows_BGRX, y_BGXY, preferred_element_type=jnp.float32))
    return out_BGRY.reshape(*x_BNMX.shape[:3], -1)


def _over_rows(x_BNMD, y_BNMK, groups):
    """(B, G, K, D): of each group the sum of y x over its rows, made as x y, (D, K), so that the
    smaller array is the one that is turned around.
    """
    x_BGRD, y_BGRK = (t.reshape(len(t), groups, -1, t.shape[-1]) for t in (x_BNMD, y_BNMK))
    turned_BGDR = _apart(x_BGRD.swapaxes(2, 3))
    out_BGDK = jnp.matmul(turned_BGDR, y_BGRK, preferred_element_type=jnp.float32)
    return _apart(out_BGDK).swapaxes(2, 3).astype(x_BNMD.dtype)


@jax.custom_vjp
def add_to_all(x, bias):
    """x + bias, where bias has all axes of x but the first (the batch), whose rows it is added to;
    its gradient goes by `sum_of_rows`.
    """
    return x + bias


def _add_forward(x, bias):
    return x + bias, None


def _add_backward(_, gradient):
    return gradient, sum_of_rows(gradient)


add_to_all.defvjp(_add_forward, _add_backward)


def sum_of_rows(x: Array) -> Array:
    """The sum over the first axis, as a product, for which XLA on a CPU takes a twentieth of the
    time of the sum.
    """
    ones_1B = jnp.ones((1, x.shape[0]), x.dtype)
    total = jnp.matmul(ones_1B, x.reshape(x.shape[0], -1), precision="highest")
    return total.reshape(x.shape[1:])
