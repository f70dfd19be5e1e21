"""Softmax attention that holds its scores, in the form that is fast on the platform."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from t2i_jax.nn import cpu_attention
from t2i_jax.types import Array


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
    on_cpu, elsewhere = (
        functools.partial(form, scale) for form in (cpu_attention.attention, _whole)
    )
    return jax.lax.platform_dependent(
        q_BQHD, k_BKGD, v_BKGD, seen, bias_HQK, cpu=on_cpu, default=elsewhere
    )


def _whole(scale, q_BQHD, k_BKGD, v_BKGD, seen, bias_HQK):
    if k_BKGD.shape[2] == 1 and seen is None and bias_HQK is None:  # one product for all heads
        k_BKD, v_BKD = k_BKGD[:, :, 0], v_BKGD[:, :, 0]
        scores_BQHK = jnp.einsum(
            "BQHD,BKD->BQHK", q_BQHD, k_BKD, preferred_element_type=jnp.float32
        )
        weights_BQHK = jax.nn.softmax(scores_BQHK * scale).astype(v_BKD.dtype)
        return jnp.einsum("BQHK,BKD->BQHD", weights_BQHK, v_BKD)
    bias = None if bias_HQK is None else bias_HQK[None]
    return jax.nn.dot_product_attention(q_BQHD, k_BKGD, v_BKGD, bias=bias, mask=seen, scale=scale)
