"""The text of a batch: what a task asks of the data, and what a network is given of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.types import Array, Batch, Key, Params


def spec(text: Any, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
    """{"text" or "text_embeds", "text_mask"} of a batch for a text encoder; {} for None."""
    if text is None:
        return {}
    of = lambda dtype, *shape: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
    stored = text.entry == "text_embeds"
    entry = of(jnp.float32, text.max_length, text.dim) if stored else of(jnp.int32, text.max_length)
    return {text.entry: entry, "text_mask": of(jnp.bool_, text.max_length)}


def frozen_shapes(text: Any) -> Mapping[str, Any]:
    """{"text": shapes of the weights} of an encoder that is not trained along; {} for any other."""
    return {"text": sharding.unbox(text.shapes())} if hasattr(text, "shapes") else {}


def embed(text: Any, params: Params, frozen: Any, batch: Batch, key: Key | None = None) -> Array:
    """Text embeddings (B, L, D): stored ones, of the frozen encoder, or of the trained one (`key`: drops out)."""
    texts, mask_BL = batch[text.entry], batch["text_mask"]
    if text.trainable:
        return text.embed(params["text"], texts, mask_BL, key)
    return jax.lax.stop_gradient(text.embed((frozen or {}).get("text", {}), texts, mask_BL))
