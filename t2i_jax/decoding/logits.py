"""Sampling of a token from logits: guidance and its limit, temperature, top-k and top-p filters,
and one sample per row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t2i_jax.types import Array, Key

_DROPPED = float("-inf")


def guide(logits_BV: Array, null_BV: Array, scale: float | Array) -> Array:
    """Classifier-free guidance on logits (as in the Parti paper): null + (conditional - null) *
    scale.
    """
    return null_BV + (logits_BV - null_BV) * scale


def plausible(logits_BV: Array, conditional_BV: Array, share: float | Array) -> Array:
    """Guided logits, at -inf where the conditional probability is below `share` of the likeliest
    conditional token's: the adaptive plausibility constraint of contrastive decoding (Li et al.
    2022, arXiv 2210.15097, section 3.3).

    Guidance extrapolates. Far out in the tail it raises tokens of which the conditional model only
    says that they are impossible, as long as the unconditional one finds them more so.

    Args:
      conditional_BV: logits given the text, before guidance. share: from 0, which drops nothing, to
        1, which leaves the likeliest.
    """
    least_B1 = jnp.max(conditional_BV, axis=-1, keepdims=True) + jnp.log(jnp.float32(share))
    return jnp.where(conditional_BV >= least_B1, logits_BV, _DROPPED)


def top_k(logits_BV: Array, k: int) -> Array:
    """Logits with all but the k largest of each row at -inf; ties with the k-th stay."""
    if k >= logits_BV.shape[-1]:
        return logits_BV
    order_BV = _sortable(logits_BV)
    kept_B1 = _largest(lambda bound_B1: _count(order_BV >= bound_B1) >= k, order_BV)
    return jnp.where(order_BV >= kept_B1, logits_BV, _DROPPED)


def top_p(logits_BV: Array, p: float) -> Array:
    """Logits outside the nucleus at -inf: what stays is the smallest set of likeliest tokens with
    probability >= p.
    """
    if p >= 1:
        return logits_BV
    order_BV, probability_BV = _sortable(logits_BV), jax.nn.softmax(logits_BV, axis=-1)

    def mass(bound_B1):
        return jnp.sum(jnp.where(order_BV >= bound_B1, probability_BV, 0.0), axis=-1, keepdims=True)

    least = max(p, float(jnp.finfo(jnp.float32).tiny))  # below it is 0, which no token at all holds
    kept_B1 = _largest(lambda bound_B1: mass(bound_B1) >= least, order_BV)
    return jnp.where(order_BV >= kept_B1, logits_BV, _DROPPED)


def filtered(logits_BV: Array, k: int | None, p: float | None, temperature: float | Array) -> Array:
    """Logits outside of both filters at -inf; None is no filter.

    The nucleus is that of the logits divided by the temperature.
    """
    if k is not None:
        logits_BV = top_k(logits_BV, k)
    if p is not None:
        inside_BV = top_p(logits_BV / jnp.maximum(temperature, 1e-6), p)
        logits_BV = jnp.where(jnp.isfinite(inside_BV), logits_BV, _DROPPED)
    return logits_BV


def sample(keys_B: Key, logits_BV: Array, temperature: float | Array) -> Array:
    """One token per row, int32, drawn from softmax(logits / temperature) with the row's own key.

    The largest of the logits plus Gumbel noise is a sample of the softmax; at temperature 0 it is
    the largest logit.
    """
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[-1:]))(keys_B)
    return largest(logits_BV + temperature * noise_BV)


def largest(logits: Array) -> Array:
    """The index of the largest number of the last axis, int32; the first of equal ones.

    XLA on a CPU takes ten times as long for the index of a maximum as for two maxima.
    """

    def by_maxima(x):
        top = jnp.max(x, axis=-1, keepdims=True)
        # of 2^24 numbers and fewer float32 holds every index
        before = jnp.where(x < top, -jnp.inf, -jnp.arange(x.shape[-1], dtype=jnp.float32))
        return -jnp.max(before, axis=-1)

    def index(x):
        return jnp.argmax(x, axis=-1)

    on_cpu = by_maxima if logits.shape[-1] <= 2**24 else index

    def of(form):
        return lambda x: form(x).astype(jnp.int32)

    return jax.lax.platform_dependent(logits, cpu=of(on_cpu), default=of(index))


def _count(holds_BV):
    """(B, 1) how many hold: in float32, which XLA on a CPU adds faster than integers."""
    return jnp.sum(holds_BV, axis=-1, keepdims=True, dtype=jnp.float32)


def _sortable(x):
    """uint32 in the order of the floats: the bits, with negative ones reversed."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds, order_BV):
    """The largest uint32 per row for which `holds`, which is true below some bound: it is set bit
    after bit from the top.

    32 passes over the row, where sorting it takes many times as long on every backend.
    """

    def set_bit(i, bound_B1):
        tried_B1 = bound_B1 | (jnp.uint32(1) << (jnp.uint32(31) - i.astype(jnp.uint32)))
        return jnp.where(holds(tried_B1), tried_B1, bound_B1)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros((order_BV.shape[0], 1), jnp.uint32))
