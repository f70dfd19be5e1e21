"""The origin that stored tokens must have for tasks that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2i_jax.models import encoder_side
from t2i_jax.systems.base import Given


def made_with(network: Any, tokenizer: Given | None) -> Mapping[str, Any]:
    """The grid and the codebook of a network over tokens, and the fingerprints of their tokenizer.

    Tokens stay valid where the decoder alone has changed, so that the first fingerprint is that of
    the encoder's side. Columns that were stored before there was one have that of all weights, the
    second.

    Args:
      tokenizer: None: any.
    """
    sizes = {"num_tokens": network.num_tokens, "codebook_size": network.codebook_size}
    return sizes if tokenizer is None else {**sizes, "tokenizer": _fingerprints(tokenizer)}


def _fingerprints(tokenizer):
    if not tokenizer.fingerprint:  # of a part that is still to be trained
        return ""
    side = encoder_side.fingerprint(tokenizer.network, tokenizer.weights)
    return (side, tokenizer.fingerprint)
