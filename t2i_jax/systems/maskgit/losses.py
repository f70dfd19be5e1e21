"""Losses of MaskGIT: which tokens are masked, how well they are predicted, and what a critic says
of those that were drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax.systems.maskgit.sampling import Inputs
from t2i_jax.types import Array, Key, Params


class Draws(NamedTuple):
    """The random numbers of a training step.

    Attributes:
      masked_BN: True where the token is to be predicted. shown_BN: True where a masked token is
        seen all the same.
      keep_B: False where the text is dropped. critic_keep_B: the same for the critic.
      self_cond: scalar bool, whether the network sees its own vectors of an earlier pass.
      gumbel_BNV: noise with which tokens are drawn for the critic. temperature: of that, a scalar.
    """

    masked_BN: Array
    shown_BN: Array
    keep_B: Array
    critic_keep_B: Array
    self_cond: Array
    gumbel_BNV: Array
    temperature: Array

    @property
    def hidden_BN(self) -> Array:
        """True where the network does not see the token."""
        return self.masked_BN & ~self.shown_BN


def draw(
    key: Key,
    shape: tuple[int, int, int],
    *,
    least_masked: float,
    cond_drop_prob: float,
    no_mask_token_prob: float,
    self_cond_prob: float,
) -> Draws:
    """The draws of a step.

    The share of masked tokens is r = cos(pi/2 u) with u uniform, which has the density 2/pi
    (1 - r^2)^(-1/2) (MaskGIT, section 3.3; Muse, section 2.6).

    Args:
      shape: (B, N, V). least_masked: the density is cut off below this share. The others: as of
        `MaskGitTask`.
    """
    batch, tokens, codes = shape
    keys = jax.random.split(key, 8)
    latest = 2 / jnp.pi * jnp.arccos(jnp.float32(least_masked))
    share_B = jnp.cos(jnp.pi / 2 * latest * jax.random.uniform(keys[0], (batch,)))
    count_B1 = jnp.maximum(jnp.round(tokens * share_B), 1)[:, None]
    rank_BN = _rank(jax.random.uniform(keys[1], (batch, tokens)))
    masked_BN = rank_BN < count_B1
    shown_BN = rank_BN < jnp.round(count_B1 * no_mask_token_prob)
    keep_B, critic_keep_B = jax.random.bernoulli(keys[2], 1 - cond_drop_prob, (2, batch))
    return Draws(
        masked_BN,
        shown_BN,
        keep_B,
        critic_keep_B,
        jax.random.bernoulli(keys[3], self_cond_prob),
        jax.random.gumbel(keys[4], (batch, tokens, codes)),
        jax.random.uniform(keys[5]),
    )


def predicted(network: Any, decoder: Params, inputs: Inputs, draws: Draws) -> tuple[Array, Array]:
    """(logits (B, N, V) of all tokens, the tokens (B, N) that the network saw)."""
    x_BN = jnp.where(draws.hidden_BN, network.mask_id, inputs.ids_BN)
    before = None
    if network.self_cond:
        stopped = jax.lax.stop_gradient(decoder)
        everything = jnp.ones_like(draws.keep_B)
        zeros = jnp.zeros((*x_BN.shape, network.dim), network.dtype)
        before = jax.lax.cond(
            draws.self_cond,
            lambda: embedded(network, stopped, x_BN, inputs, everything).astype(zeros.dtype),
            lambda: zeros,
        )
        before = jax.lax.stop_gradient(before)
    vectors = embedded(network, decoder, x_BN, inputs, draws.keep_B, before)
    return network.apply({"params": decoder}, vectors, method="logits"), x_BN


def embedded(
    network: Any,
    params: Params,
    x_BN: Array,
    inputs: Inputs,
    keep_B: Array,
    before: Array | None = None,
) -> Array:
    """The network's vectors (B, N, C) of tokens; arguments as of its `embed`."""
    return network.apply(
        {"params": params}, x_BN, inputs.embeds_BLD, inputs.mask_BL, keep_B,
        inputs.cond_ids_BM, before, method="embed",
    )  # fmt: skip


def cross_entropy(logits_BNV: Array, ids_BN: Array, masked_BN: Array, smoothing: float = 0.0):
    """(loss, nats, accuracy), means over the masked tokens: the cross-entropy with and without
    label smoothing, and the share of likeliest tokens that are right.
    """
    hit_BNV = jnp.arange(logits_BNV.shape[-1]) == ids_BN[..., None]  # gathering scatters backwards
    log_sum_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    nats_BN = log_sum_BN - jnp.sum(jnp.where(hit_BNV, logits_BNV, 0.0), axis=-1)
    nats = mean(nats_BN, masked_BN)
    loss = nats
    if smoothing:
        spread = mean(log_sum_BN - jnp.mean(logits_BNV, axis=-1), masked_BN)
        loss = (1 - smoothing) * nats + smoothing * spread
    accuracy = mean(jnp.argmax(logits_BNV, axis=-1) == ids_BN, masked_BN)
    return loss, nats, accuracy


def mean(x_BN: Array, where_BN: Array) -> Array:
    """The mean of `x_BN` where `where_BN` is True, over the whole batch."""
    return jnp.sum(jnp.where(where_BN, x_BN, 0.0)) / jnp.maximum(jnp.sum(where_BN), 1)


def redrawn(logits_BNV: Array, x_BN: Array, draws: Draws) -> Array:
    """Tokens for a critic: `x_BN`, drawn from the logits where they were hidden."""
    noise_BNV = draws.gumbel_BNV * draws.temperature
    drawn_BN = jnp.argmax(jax.lax.stop_gradient(logits_BNV) + noise_BNV, axis=-1)
    return jnp.where(draws.hidden_BN, drawn_BN, x_BN)


def wrongness(logits_BN: Array, wrong_BN: Array) -> Array:
    """Mean binary cross-entropy of a critic's logits, which should be high where a token is
    wrong.
    """
    return jnp.mean(jax.nn.softplus(logits_BN) - logits_BN * wrong_BN)


def _rank(x_BN):
    return jnp.argsort(jnp.argsort(x_BN, axis=-1), axis=-1)
