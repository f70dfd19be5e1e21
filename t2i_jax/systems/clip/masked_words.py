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


class Masked(NamedTuple):
    """Captions with some tokens hidden.

    Attributes:
      text_BL: ids that the network sees. target_BL: True where it has to say what was there.
    """

    text_BL: Array
    target_BL: Array


@dataclasses.dataclass(frozen=True)
class MaskedWords:
    """Which tokens are hidden (Devlin et al. 2019, BERT, section 3.1).

    Attributes:
      weight: of the loss; the contrastive loss keeps the rest of 1.
      mask_prob: share of a caption's tokens that are chosen, rounded up.
      replace_prob: share of the chosen ones that become the mask token; the others stay.
      random_token_prob: share of all tokens that become any other id.
      mask_token_id: id of the mask token; None: the row that the network has for it. x-clip takes
        2, the id of a real token, unless it is told otherwise.
    """

    weight: float = 0.05
    mask_prob: float = 0.15
    replace_prob: float = 0.9
    random_token_prob: float = 0.0
    mask_token_id: int | None = None

    def __post_init__(self):
        for field in ("weight", "mask_prob", "replace_prob", "random_token_prob"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"mlm.{field}={getattr(self, field)} is outside [0, 1]; try 0.15.")
        if self.mask_token_id is not None and self.mask_token_id < 0:
            raise UserError(f"mlm.mask_token_id={self.mask_token_id} is negative; leave it out.")

    def hide(self, text_BL: Array, mask_BL: Array, mask_id: int, key: Key) -> Masked:
        """Captions with some tokens hidden; at least one of each caption is a target.

        Args:
          mask_id: the network's own mask token, one more than all other ids.
        """
        for_choice, for_random, for_ids, for_mask = jax.random.split(key, 4)
        noise_BL = jnp.where(mask_BL, jax.random.uniform(for_choice, text_BL.shape), -1.0)
        wanted_B1 = jnp.ceil(jnp.sum(mask_BL, axis=1, keepdims=True) * self.mask_prob)
        rank_BL = jnp.argsort(jnp.argsort(-noise_BL, axis=1), axis=1)
        target_BL = mask_BL & (rank_BL < wanted_B1)
        seen_BL, hidden_BL = text_BL, target_BL
        if self.random_token_prob:
            other_BL = jax.random.bernoulli(for_random, self.random_token_prob, text_BL.shape)
            other_BL &= mask_BL
            random_BL = jax.random.randint(for_ids, text_BL.shape, 1, mask_id)
            seen_BL, hidden_BL = jnp.where(other_BL, random_BL, seen_BL), hidden_BL & ~other_BL
        hidden_BL &= jax.random.bernoulli(for_mask, self.replace_prob, text_BL.shape)
        own = mask_id if self.mask_token_id is None else self.mask_token_id
        return Masked(jnp.where(hidden_BL, own, seen_BL), target_BL)


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
