"""Masked language modelling of captions beside the contrastive loss (Li et al. 2022, DeCLIP), as
x-clip 0.14.4 has it (mlm.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key
from t2i_jax.values import shown


class Masked(NamedTuple):
    """Captions with some tokens hidden.

    Attributes:
      text_BL: ids that the network sees. target_BL: True where it has to say what was there.
    """

    text_BL: Array
    target_BL: Array


@dataclasses.dataclass(frozen=True)
class MaskedWords:
    """The choice of the tokens that are hidden (Devlin et al. 2019, BERT, section 3.1).

    Attributes:
      weight: of the loss; the contrastive loss keeps the rest of 1.
      mask_prob: share of a caption's tokens that are chosen, rounded up.
      replace_prob: share of the chosen ones that become the mask token; the others stay.
      random_token_prob: share of all tokens that become any other id.
      mask_token_id: id of the mask token; None: the row that the network has for it. x-clip takes
        2, the id of a real token, unless it is told otherwise.
      mask_ignore_token_ids: ids that are never chosen, and that no other token becomes at random.
    """

    weight: float = 0.05
    mask_prob: float = 0.15
    replace_prob: float = 0.9
    random_token_prob: float = 0.0
    mask_token_id: int | None = None
    mask_ignore_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for field in ("weight", "mask_prob", "replace_prob", "random_token_prob"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"mlm.{field}={getattr(self, field)} is outside [0, 1]; try 0.15.")
        ids = self.mask_ignore_token_ids
        if not isinstance(ids, tuple) or not all(type(one) is int and one >= 0 for one in ids):
            raise UserError(
                f"mlm.mask_ignore_token_ids={shown(ids)} are no ids; give whole numbers, as (1, 2)."
            )
        if self.mask_token_id is not None and self.mask_token_id < 0:
            raise UserError(f"mlm.mask_token_id={self.mask_token_id} is negative; leave it out.")

    def hide(
        self, text_BL: Array, mask_BL: Array, mask_id: int, key: Key, pad_id: int = 0
    ) -> Masked:
        """Captions with some tokens hidden; at least one is a target of each that has any to hide.

        Args:
          mask_id: the network's own mask token, one more than all other ids. pad_id: id of
            padding, which no token becomes at random.
        """
        for_choice, for_random, for_ids, for_mask = jax.random.split(key, 4)
        may_BL = mask_BL & ~self._ignored(text_BL)
        noise_BL = jnp.where(may_BL, jax.random.uniform(for_choice, text_BL.shape), -1.0)
        wanted_B1 = jnp.ceil(jnp.sum(may_BL, axis=1, keepdims=True) * self.mask_prob)
        rank_BL = jnp.argsort(jnp.argsort(-noise_BL, axis=1), axis=1)
        target_BL = may_BL & (rank_BL < wanted_B1)
        seen_BL, hidden_BL = text_BL, target_BL
        if self.random_token_prob:
            other_BL = jax.random.bernoulli(for_random, self.random_token_prob, text_BL.shape)
            random_BL = jax.random.randint(for_ids, text_BL.shape, 1, mask_id)
            random_BL = jnp.where(random_BL == pad_id, 0, random_BL)  # any id but that of padding
            other_BL &= mask_BL & ~self._ignored(random_BL)
            seen_BL, hidden_BL = jnp.where(other_BL, random_BL, seen_BL), hidden_BL & ~other_BL
        hidden_BL &= jax.random.bernoulli(for_mask, self.replace_prob, text_BL.shape)
        own = mask_id if self.mask_token_id is None else self.mask_token_id
        return Masked(jnp.where(hidden_BL, own, seen_BL), target_BL)

    def _ignored(self, ids_BL):
        ignored = self.mask_ignore_token_ids
        if not ignored:
            return jnp.zeros(ids_BL.shape, bool)
        return jnp.isin(ids_BL, jnp.asarray(ignored, ids_BL.dtype))


def cross_entropy(network: Any, params: Any, masked: Masked, text_BL: Array, mask_BL: Array):
    """The mean cross-entropy in nats of the hidden tokens, and the share that is found.

    Padding is masked out, also of a network with `text_encode_without_mask`, as in x-clip.
    """
    network = dataclasses.replace(network, text_encode_without_mask=False)
    tokens_BLE = network.text_features(params, masked.text_BL, mask_BL).tokens_BNE
    logits_BLV = network.mlm_logits(params, tokens_BLE).astype(jnp.float32)
    hit_BLV = jnp.arange(logits_BLV.shape[-1]) == text_BL[..., None]
    own_BL = jnp.sum(jnp.where(hit_BLV, logits_BLV, 0), axis=-1)
    nats_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - own_BL
    count = jnp.maximum(jnp.sum(masked.target_BL), 1)
    found_BL = jnp.argmax(logits_BLV, axis=-1) == text_BL

    def mean(x_BL):
        return jnp.sum(jnp.where(masked.target_BL, x_BL, 0)) / count

    return mean(nats_BL), mean(found_BL)
