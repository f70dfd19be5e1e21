"""Sampling of masked tokens in a few steps, as MaskGIT does (Chang et al. 2022, arXiv 2202.04200),
in one compiled loop.
"""

from __future__ import annotations

import dataclasses
import functools
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

# (ids_BN, memory) -> (vectors_BNC, memory); rows in two halves where guided
Predict = Callable[[Array, Any], tuple[Array, Any]]
# vectors (B, M, C) of some places -> their logits (B, M, V); a linear map
Logits = Callable[[Array], Array]
# (ids_BN) -> logits_BN, high where a token is wrong; guided already
Critic = Callable[[Array], Array]
ORDERS = ("confidence", "halton", "random")
SCHEDULES = ("muse", "maskgit")
_NEVER = 1e9  # a score that keeps a token from being masked again
_LOGITS = 2**24  # most logits that are made at once, 64 MiB


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
      schedule: "muse", of muse-maskgit-pytorch: the share of masked tokens falls to 0 at the last
        step, which draws one, and the temperature of the tokens to 0; "maskgit", of
        google-research/maskgit: it would fall to 0 after the last step, and at least one token
        stays in each; the temperature does not fall.
    """

    steps: int = 24
    growing: bool = False
    order: str = "confidence"
    remask: bool = False
    score_drawn: bool = False
    schedule: str = "muse"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UserError(f"steps={self.steps!r} is not a count from 1; try 24.")
        config.one_of("order", self.order, ORDERS)
        config.one_of("schedule", self.schedule, SCHEDULES)


def cosine_schedule(steps: int, schedule: str = "muse") -> np.ndarray:
    """The share of the tokens that is masked at the start of each step, from 1 down to 0 at the
    last one ("muse"), or to what it is a step before 0 ("maskgit"): cos(pi/2 t) (MaskGIT, section
    3.3).
    """
    if schedule == "maskgit":
        return np.cos(
            np.arange(steps, dtype=np.float32) / np.float32(steps) * np.float32(np.pi / 2)
        )
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
    logits: Logits | None = None,
    memory: Any = None,
    critic: Critic | None = None,
    guidance: float | Array = 1.0,
    temperature: float | Array = 1.0,
    choice_temperature: float | Array = 0.0,
    critic_noise: float | Array = 1.0,
    plausibility: float | Array | None = None,
    given_BN: Array | None = None,
    known_BN: Array | None = None,
    strength: float | Array | None = None,
    tell: Callable[[Array], None] | None = None,
) -> tuple[Array, Array]:
    """Tokens (B, num_tokens) int32, and those at the end of every step (steps, B, num_tokens).

    At the start of a step the tokens with the highest scores are masked (as many as the schedule
    says, at least one), and drawn anew. Logits are made of these alone, as far as scores need no
    others, and where no limit of plausibility asks for both it is vectors that are guided, not
    logits: a large codebook costs most of a step.

    Args:
      predict: the network. `memory` is what it hands from step to step (self-conditioning).
      logits: its last layer, from vectors to logits; None: its vectors are logits.
      keys_B: one key per row, so that a row's tokens do not depend on what else is in the batch.
      critic: says which tokens to mask again; None: those that `sampling.order` says.
      guidance: strength l in null + l * (text - null).
      temperature: of the tokens, falling linearly to 0 at the last step; with schedule="maskgit"
        it does not. choice_temperature: of Gumbel noise on the confidences, falling likewise
        (MaskGIT; muse-maskgit-pytorch has none).
      critic_noise: of uniform noise on the critic's scores, falling likewise.
      plausibility: as of `autoregressive.generate`; None: no token is left out.
      given_BN, known_BN: tokens, and True where they are kept from the start to the end
        (inpainting); None: none.
      strength: sampling begins from the tokens of given_BN that are not known, with this share of
        them, above 0 to 1, masked at random, and changes them. None: all are drawn anew.
      tell: called within the compiled loop with the tokens at the end of every step; None: nothing.
    """
    batch, steps = keys_B.shape[0], sampling.steps
    known_BN = jnp.zeros((batch, num_tokens), bool) if known_BN is None else known_BN
    given_BN = jnp.zeros_like(known_BN, jnp.int32) if given_BN is None else given_BN
    places_B1 = jnp.sum(~known_BN, axis=-1, keepdims=True)
    order_N = jnp.asarray(_order(sampling.order, num_tokens))
    by_confidence = critic is None and sampling.order == "confidence"
    published = sampling.schedule == "maskgit"

    def step(carry, now):
        ids_BN, scores_BN, memory, before_B1 = carry
        i, share = now
        # Of the tokens that may change as many are masked as the schedule says of all.
        count_B1 = (share * places_B1.astype(jnp.float32)).astype(jnp.int32)
        if published:
            count_B1 = jnp.minimum(count_B1, before_B1 - 1)
        count_B1 = jnp.maximum(count_B1, 1)
        masked_BN = (_rank(scores_BN) < count_B1) & ~known_BN
        ids_BN = jnp.where(masked_BN, mask_id, ids_BN)
        left = (steps - 1 - i) / steps
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i), 3))(keys_B)
        rows = jnp.concatenate([ids_BN, ids_BN]) if sampling.guided else ids_BN
        vectors, memory = predict(rows, memory)
        growth = (i + 1) / steps if sampling.growing else 1.0
        at = _logits_at(vectors, logits, sampling, 1 + (guidance - 1) * growth, plausibility)
        warmth = temperature if published else temperature * left
        draw = functools.partial(_draw, keys[:, 0], at, sampling, warmth)
        everywhere = by_confidence and sampling.remask
        wanted_BN = jnp.ones_like(masked_BN) if everywhere else masked_BN
        drawn_BN, log_p_BN = draw(ids_BN, masked_BN, wanted_BN, by_confidence)
        ids_BN = jnp.where(masked_BN, drawn_BN, ids_BN)
        if critic is not None:
            noise = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys[:, 1])
            scores_BN = critic(ids_BN) + (noise - 0.5) * critic_noise * left
        else:
            scores_BN = -_confidence(
                keys[:, 2], log_p_BN, order_N, sampling, choice_temperature * left
            )
            if not sampling.remask:
                scores_BN = jnp.where(masked_BN, scores_BN, -_NEVER)
        scores_BN = jnp.where(known_BN, -jnp.inf, scores_BN)
        if tell is not None:
            tell(ids_BN)
        return (ids_BN, scores_BN, memory, count_B1), ids_BN

    shares = jnp.asarray(cosine_schedule(steps, sampling.schedule))
    start_BN, scores_BN = jnp.where(known_BN, given_BN, mask_id), 0.0
    if strength is not None:
        start_BN, shares = given_BN, shares * strength
        scores_BN = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys_B)
    scores_BN = jnp.where(known_BN, -jnp.inf, scores_BN)
    start = (start_BN.astype(jnp.int32), scores_BN, memory, places_B1.astype(jnp.int32) + 1)
    (ids_BN, *_), trace = jax.lax.scan(step, start, (jnp.arange(steps), shares))
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
    logits: Logits | None = None,
    memory: Any = None,
    guidance: float | Array = 1.0,
    temperature: float | Array = 1.0,
    plausibility: float | Array | None = None,
    known_BN: Array | None = None,
    share: float | Array = 0.08,
    tell: Callable[[Array], None] | None = None,
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
        vectors, memory = predict(
            jnp.concatenate([rows, rows]) if sampling.guided else rows, memory
        )
        at = _logits_at(vectors, logits, sampling, guidance, plausibility)
        drawn_BN, _ = _draw(
            keys[:, 1], at, sampling, temperature, ids_BN, masked_BN, masked_BN, False
        )
        ids_BN = jnp.where(masked_BN, drawn_BN, ids_BN)
        if tell is not None:
            tell(ids_BN)
        return (ids_BN, memory), ids_BN

    start = (given_BN.astype(jnp.int32), memory)
    (ids_BN, _), trace = jax.lax.scan(step, start, jnp.arange(steps))
    return ids_BN, trace


def _logits_at(vectors, logits, sampling, strength, plausibility):
    """A function from places (B, M) to their logits; where it is guided the rows of the vectors
    come in two halves.
    """
    logits = (lambda vectors: vectors) if logits is None else logits

    def of(vectors_BNC, places_BM):
        if places_BM is None:
            return vectors_BNC
        return jnp.take_along_axis(vectors_BNC, places_BM[..., None], axis=1)

    def at(places_BM):
        if not sampling.guided:
            return logits(of(vectors, places_BM))
        told, null = (of(half, places_BM) for half in jnp.split(vectors, 2))
        if plausibility is None:
            wide = (part.astype(jnp.float32) for part in (told, null))
            return logits(filters.guide(*wide, strength))
        told, null = logits(told), logits(null)
        return filters.plausible(filters.guide(told, null, strength), told, plausibility)

    return at


def _draw(keys_B, at, sampling, temperature, ids_BN, masked_BN, wanted_BN, scored):
    """Tokens (B, N) drawn at the places that are wanted, and with `scored` the logarithms of the
    probabilities of those that then stand there; both are 0 elsewhere.

    Args:
      at: from places to logits. temperature: 0 takes the likeliest.
    """
    (batch, count), places_BN = ids_BN.shape, jnp.argsort(~wanted_BN, axis=-1, stable=True)
    vocabulary = jax.eval_shape(at, places_BN[:, :1]).shape[-1]
    size = max(1, min(count, _LOGITS // (batch * vocabulary)))
    rows_B1 = jnp.arange(batch)[:, None]

    def block(places_BM):
        logits_BMV = at(None if size == count else places_BM)
        drawn_BM = _sampled(keys_B, logits_BMV, places_BM, sampling, temperature)
        if not scored:
            return drawn_BM, jnp.zeros(drawn_BM.shape, jnp.float32)
        stays_BM = ~masked_BN[rows_B1, places_BM] & (not sampling.score_drawn)
        ids_BM = jnp.where(stays_BM, ids_BN[rows_B1, places_BM], drawn_BM)
        ids_BM = jnp.minimum(ids_BM, vocabulary - 1)  # of a place that is not wanted
        of_ids = jnp.take_along_axis(logits_BMV, ids_BM[..., None], axis=-1)[..., 0]
        return drawn_BM, of_ids - jax.nn.logsumexp(logits_BMV, axis=-1)

    if size == count:
        return block(jnp.broadcast_to(jnp.arange(count), ids_BN.shape))

    def fill(i, made):
        # The last block begins early where it would go beyond the end; its places come out alike.
        places_BM = jax.lax.dynamic_slice_in_dim(places_BN, i * size, size, axis=1)
        return tuple(
            whole.at[rows_B1, places_BM].set(part)
            for whole, part in zip(made, block(places_BM), strict=True)
        )

    blocks = (jnp.max(jnp.sum(wanted_BN, axis=-1)) + size - 1) // size
    nothing = jnp.zeros(ids_BN.shape, jnp.int32), jnp.zeros(ids_BN.shape, jnp.float32)
    return jax.lax.fori_loop(0, blocks, fill, nothing)


def _sampled(keys_B, logits_BMV, places_BM, sampling, temperature):
    """A token per place, by noise that depends on the row's key and the place alone."""
    k, vocabulary = sampling.top_k, logits_BMV.shape[-1]
    k = int(np.ceil(k * vocabulary)) if isinstance(k, float) else k
    rows = logits_BMV.reshape(-1, vocabulary)
    rows = filters.filtered(rows, k, sampling.top_p, temperature)

    def noise(key, place):
        return jax.random.gumbel(jax.random.fold_in(key, place), (vocabulary,))

    noise_BMV = jax.vmap(jax.vmap(noise, (None, 0)))(keys_B, places_BM)
    drawn_BMV = rows.reshape(logits_BMV.shape) + temperature * noise_BMV
    return filters.largest(drawn_BMV)


def _confidence(keys_B, log_p_BN, order_N, sampling, temperature):
    """The confidence in each token, by which it stays: the logarithm of its probability, with
    noise; or its place in an order.
    """
    if sampling.order == "halton":
        return jnp.broadcast_to(order_N, log_p_BN.shape)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, log_p_BN.shape[1:]))(keys_B)
    if sampling.order == "random":
        return noise
    return log_p_BN + temperature * noise


def _rank(scores_BN):
    """The place of each token: how many have a higher score, or the same and come before it."""
    order = jnp.argsort(scores_BN, axis=-1, descending=True, stable=True)
    return jnp.argsort(order, axis=-1)


def _order(name, num_tokens):
    """The priority of each place of the grid, highest for the first."""
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
