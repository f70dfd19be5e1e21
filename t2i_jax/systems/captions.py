"""The text of a batch: what a task asks of the data, and what a network is given of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax.text.encoder import TextEncoder
from t2i_jax.types import Array, Batch, Key, Params


def spec(text: TextEncoder | None, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
    """{"text" or "text_embeds", "text_mask"} of a batch for a text encoder; {} for None."""
    return {} if text is None else text.spec(batch_size)


def quiet(text: TextEncoder | None) -> TextEncoder | None:
    """The encoder without dropout, for validation."""
    return None if text is None else text.quiet()


def embed(
    text: TextEncoder, params: Params, frozen: Any, batch: Batch, key: Key | None = None
) -> Array:
    """Text embeddings (B, L, D): stored ones, of the frozen encoder, or of the trained one (`key`:
    drops out).
    """
    texts, mask_BL = batch[text.entry], batch["text_mask"]
    if text.trainable:
        return text.embed(params["text"], texts, mask_BL, key)
    return jax.lax.stop_gradient(text.embed((frozen or {}).get("text", {}), texts, mask_BL))
