"""Sampling of masked tokens in a few steps, as MaskGIT does (Chang et al. 2022, arXiv 2202.04200),
in one compiled loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import config
from t2i_jax.decoding import autoregressive
from t2i_jax.decoding import logits as filters
from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key

# (ids_BN, memory) -> (logits_BNV, memory); rows in two halves where guided
Predict = Callable[[Array, Any], tuple[Array, Any]]
# (ids_BN) -> logits_BN, high where a token is wrong; guided already
Critic = Callable[[Array], Array]
ORDERS = ("confidence", "halton", "random")
_NEVER = 1e9  # a score that keeps a token from being masked again


@dataclasses.dataclass(frozen=True)
class Sampling(autoregressive.Sampling):
    """The part of the sampling options that shapes the compiled program.

    Attributes:
      guided, top_k, top_p: as of `autoregressive.Sampling`; a float top_k is rounded up here.
      steps: passes through the network.
      growing: the guidance grows linearly over the steps from 1 to its value (Muse, section 2.7).
      order: which tokens are kept first: "confidence", those that the network is surest of;
        "halton", spread evenly over the image (Besnier et al. 2025, arXiv 2503.17076); "random".
      remask: tokens that were kept may be masked again; a critic always may.
      score_drawn: with `remask` a kept token has the confidence of what was drawn in its place and
        thrown away, as in muse-maskgit-pytorch; False: its own.
    """

    steps: int = 24
    growing: bool = False
    order: str = "confidence"
    remask: bool = False
    score_drawn: bool = False

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UserError(f"steps={self.steps!r} is not a count from 1; try 24.")
        config.one_of("order", self.order, ORDERS)


def cosine_schedule(steps: int) -> np.ndarray:
    """The share of the tokens that is masked at the start of each step, from 1 down to 0: cos(pi/2
    t) (MaskGIT, section 3.3).
    """
    place, spacing = np.arange(steps), np.float32(1 / max(steps - 1, 1))
    # Counted from the nearer end, as PyTorch does: the last bit decides on whole numbers of tokens.
    times = np.where(
        place < steps // 2, place * spacing, np.float32(1) - (steps - 1 - place) * spacing
    ).astype(np.float32)
    times = times if steps > 1 else np.zeros((1,), np.float32)
    return np.maximum(np.cos(times * np.float32(np.pi) * np.float32(0.5)), 0)


def generate(
    predict: Predict,
    keys_B: Key,
    num_tokens: int,
    mask_id: int,
    *,
    sampling: Sampling,
    memory: Any = None,
    critic: Critic | None = None,
    guidance: float | Array = 1.0,
    temperature: float | Array = 1.0,
    choice_temperature: float | Array = 0.0,
    critic_noise: float | Array = 1.0,
    plausibility: float | Array = 0.0,
    given_BN: Array | None = None,
    known_BN: Array | None = None,
    strength: float | Array | None = None,
) -> tuple[Array, Array]:
    """Tokens (B, num_tokens) int32, and those at the end of every step (steps, B, num_tokens).

    At the start of a step the tokens with the highest scores are masked (as many as the schedule
    says, at least one), and drawn anew.

    Args:
      predict: the network. `memory` is what it hands from step to step (self-conditioning).
      keys_B: one key per row, so that a row's tokens do not depend on what else is in the batch.
      critic: says which tokens to mask again; None: those that `sampling.order` says.
      guidance: strength l in null + l * (text - null).
      temperature: of the tokens, falling linearly to 0 at the last step. choice_temperature: of
        Gumbel noise on the confidences, falling likewise (MaskGIT; the package has none).
      critic_noise: of uniform noise on the critic's scores, falling likewise.
      plausibility: as of `autoregressive.generate`.
      given_BN, known_BN: tokens, and True where they are kept from the start to the end
        (inpainting); None: none.
      strength: tokens of given_BN that are not known are changed: sampling begins from them, with
        so large a random part of them masked, above 0 to 1. None: all of them are drawn anew.
    """
    batch, steps = keys_B.shape[0], sampling.steps
    known_BN = jnp.zeros((batch, num_tokens), bool) if known_BN is None else known_BN
    given_BN = jnp.zeros_like(known_BN, jnp.int32) if given_BN is None else given_BN
    places_B1 = jnp.sum(~known_BN, axis=-1, keepdims=True)
    order_N = jnp.asarray(_order(sampling.order, num_tokens))

    def step(carry, now):
        ids_BN, scores_BN, memory = carry
        i, share = now
        # Of the tokens that may change as many are masked as the schedule says of all.
        count_B1 = jnp.maximum((share * places_B1.astype(jnp.float32)).astype(jnp.int32), 1)
        masked_BN = (_rank(scores_BN) < count_B1) & ~known_BN
        ids_BN = jnp.where(masked_BN, mask_id, ids_BN)
        left = (steps - 1 - i) / steps
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i), 3))(keys_B)
        rows = jnp.concatenate([ids_BN, ids_BN]) if sampling.guided else ids_BN
        logits, memory = predict(rows, memory)
        growth = (i + 1) / steps if sampling.growing else 1.0
        logits = _guided(logits, sampling, 1 + (guidance - 1) * growth, plausibility)
        drawn_BN = _draw(keys[:, 0], logits, sampling, temperature * left)
        ids_BN = jnp.where(masked_BN, drawn_BN, ids_BN)
        if critic is not None:
            noise = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys[:, 1])
            scores_BN = critic(ids_BN) + (noise - 0.5) * critic_noise * left
        else:
            scored_BN = drawn_BN if sampling.score_drawn else ids_BN
            scores_BN = -_confidence(
                keys[:, 2], logits, scored_BN, order_N, sampling, choice_temperature * left
            )
            if not sampling.remask:
                scores_BN = jnp.where(masked_BN, scores_BN, -_NEVER)
        return (ids_BN, jnp.where(known_BN, -jnp.inf, scores_BN), memory), ids_BN

    shares = jnp.asarray(cosine_schedule(steps))
    start_BN, scores_BN = jnp.where(known_BN, given_BN, mask_id), 0.0
    if strength is not None:
        start_BN, shares = given_BN, shares * strength
        scores_BN = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys_B)
    start = (start_BN.astype(jnp.int32), jnp.where(known_BN, -jnp.inf, scores_BN), memory)
    (ids_BN, _, _), trace = jax.lax.scan(step, start, (jnp.arange(steps), shares))
    return ids_BN, trace


def edit(
    predict: Predict,
    keys_B: Key,
    num_tokens: int,
    mask_id: int,
    given_BN: Array,
    *,
    steps: int,
    sampling: Sampling,
    memory: Any = None,
    guidance: float | Array = 1.0,
    temperature: float | Array = 1.0,
    plausibility: float | Array = 0.0,
    known_BN: Array | None = None,
    share: float | Array = 0.08,
) -> tuple[Array, Array]:
    """Tokens moved towards another text without a mask (Muse, section 3.3), and those at the end of
    every step: each step masks a random part of the tokens and draws it anew, given the rest.

    Args:
      given_BN: the tokens to begin with. known_BN: True where they stay as they are; None: nowhere.
      share: how large the part is of those that may change, above 0 to 1; a token is the least.
      The others: as of `generate`; of `sampling` only the guidance and the filters are used.
    """
    known_BN = jnp.zeros(given_BN.shape, bool) if known_BN is None else known_BN
    places_B1 = jnp.sum(~known_BN, axis=-1, keepdims=True)
    count_B1 = jnp.maximum(jnp.round(share * places_B1), 1)

    def step(carry, i):
        ids_BN, memory = carry
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i)))(keys_B)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys[:, 0])
        masked_BN = (_rank(jnp.where(known_BN, -jnp.inf, noise)) < count_B1) & ~known_BN
        rows = jnp.where(masked_BN, mask_id, ids_BN)
        logits, memory = predict(jnp.concatenate([rows, rows]) if sampling.guided else rows, memory)
        logits = _guided(logits, sampling, guidance, plausibility)
        ids_BN = jnp.where(masked_BN, _draw(keys[:, 1], logits, sampling, temperature), ids_BN)
        return (ids_BN, memory), ids_BN

    start = (given_BN.astype(jnp.int32), memory)
    (ids_BN, _), trace = jax.lax.scan(step, start, jnp.arange(steps))
    return ids_BN, trace


def _guided(logits, sampling, strength, plausibility):
    """The logits of a batch; where it is guided its rows come in two halves."""
    if not sampling.guided:
        return logits
    told, null = jnp.split(logits, 2)
    return filters.plausible(filters.guide(told, null, strength), told, plausibility)


def _draw(keys_B, logits_BNV, sampling, temperature):
    """A token per place; a temperature of 0 takes the likeliest."""
    k, vocabulary = sampling.top_k, logits_BNV.shape[-1]
    k = int(np.ceil(k * vocabulary)) if isinstance(k, float) else k
    rows = logits_BNV.reshape(-1, vocabulary)
    rows = filters.filtered(rows, k, sampling.top_p, temperature)
    logits_BNV = rows.reshape(logits_BNV.shape)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits_BNV.shape[1:]))(keys_B)
    return jnp.argmax(logits_BNV + temperature * noise, axis=-1).astype(jnp.int32)


def _confidence(keys_B, logits_BNV, ids_BN, order_N, sampling, temperature):
    """How much each token should stay: the logarithm of its probability, with noise; or its place
    in an order.
    """
    if sampling.order == "halton":
        return jnp.broadcast_to(order_N, ids_BN.shape)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, ids_BN.shape[1:]))(keys_B)
    if sampling.order == "random":
        return noise
    log_p = jax.nn.log_softmax(logits_BNV, axis=-1)
    of_ids = jnp.take_along_axis(log_p, ids_BN[..., None], axis=-1)[..., 0]
    return of_ids + temperature * noise


def _rank(scores_BN):
    """Of each token, how many have a higher score, or the same and come before it."""
    order = jnp.argsort(scores_BN, axis=-1, descending=True, stable=True)
    return jnp.argsort(order, axis=-1)


def _order(name, num_tokens):
    """How early each place of the grid comes, highest first."""
    if name != "halton":
        return np.zeros((num_tokens,), np.float32)
    side = round(num_tokens**0.5)
    first: dict[int, int] = {}
    point = 0
    while len(first) < num_tokens:
        row, column = (int(_radical_inverse(point, base) * side) for base in (2, 3))
        first.setdefault(min(row, side - 1) * side + min(column, side - 1), len(first))
        point += 1
    return -np.asarray([first[place] for place in range(num_tokens)], np.float32)


def _radical_inverse(n, base):
    """The digits of n behind the point, the last first: the Halton sequence."""
    value, unit = 0.0, 1.0 / base
    while n:
        n, digit = divmod(n, base)
        value, unit = value + digit * unit, unit / base
    return value
