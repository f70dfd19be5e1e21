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
    bias = given["bias"][None] if "bias" in given else None
    return jax.nn.dot_product_attention(
        q_BQHD, k_BKGD, v_BKGD, bias=bias, mask=given.get("seen"), scale=scale
    )


def _in_pieces(scale, q_BQHD, k_BKGD, v_BKGD, given):
    """Left to itself, XLA on a CPU makes one slow piece of scores, softmax and transposes."""
    arrays = q_BQHD * jnp.asarray(scale, q_BQHD.dtype), k_BKGD, v_BKGD
    if k_BKGD.shape[2] > 1:
        return _by_first_axes(*(t.swapaxes(1, 2) for t in arrays), given).swapaxes(1, 2)
    # The queries of all heads meet the same keys: they stay as they lie, (B, Q, H, D).
    q, k, v = arrays[0], arrays[1].swapaxes(1, 2), arrays[2].swapaxes(1, 2)
    return _by_first_axes(q, k, v, {name: array.swapaxes(-3, -2) for name, array in given.items()})


def _by_first_axes(q_BNMD, k_BGKD, v_BGKD, given):
    """Attention in pieces that barriers keep apart: products of matrices that lie together in
    memory, the softmax between them, and the division by its sum last, where the numbers are few.

    N and M are heads and queries, or queries and heads, as in the arrays that are `given`.
    """
    apart = jax.lax.optimization_barrier
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    q_BNMD, k_BGKD, v_BGKD = apart((q_BNMD, k_BGKD, v_BGKD))
    scores_BNMK = apart(product(q_BNMD, k_BGKD.swapaxes(2, 3)))
    if "bias" in given:
        scores_BNMK = add_to_all(scores_BNMK, given["bias"])
    if "seen" in given:
        scores_BNMK = jnp.where(given["seen"], scores_BNMK, MASKED)
    top_BNM1 = apart(jax.lax.stop_gradient(jnp.max(scores_BNMK, axis=-1, keepdims=True)))
    e_BNMK = apart(jnp.exp(scores_BNMK - top_BNM1))
    total_BNM1 = apart(jnp.sum(e_BNMK, axis=-1, keepdims=True))
    out_BNMD = apart(product(e_BNMK.astype(v_BGKD.dtype), v_BGKD)) / total_BNM1
    return apart(out_BNMD.astype(v_BGKD.dtype))


@jax.custom_vjp
def add_to_all(x, bias):
    """x + bias, where bias has all axes of x but the first (the batch), whose rows it is added to.

    Its gradient is a sum over the batch, which XLA on a CPU takes twenty times as long for as for
    this product.
    """
    return x + bias


def _add_forward(x, bias):
    return x + bias, None


def _add_backward(_, gradient):
    ones_1B = jnp.ones((1, gradient.shape[0]), gradient.dtype)
    total = jnp.matmul(ones_1B, gradient.reshape(gradient.shape[0], -1), precision="highest")
    return gradient, total.reshape(gradient.shape[1:])


add_to_all.defvjp(_add_forward, _add_backward)
