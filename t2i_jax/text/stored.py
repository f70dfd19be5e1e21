"""Text that comes as embeddings: computed once, stored with the data."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key, Params


@dataclasses.dataclass(frozen=True)
class StoredText:
    """No encoder: the batch brings "text_embeds" and "text_mask".

    Attributes:
      dim: width of the embeddings, for example 768 for google/t5-v1_1-base.
      max_length: rows of a caption, padding included.
    """

    dim: int
    max_length: int = 128

    trainable: ClassVar[bool] = False
    entry: ClassVar[str] = "text_embeds"  # of the batch: what `embed` takes

    def __post_init__(self):
        for field in ("dim", "max_length"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not positive; give 1 or more.")

    def init(self, key: Key) -> Params:
        """Nothing."""
        return {}

    def embed(self, params: Params, text_BLD: Array, mask_BL: Array) -> Array:
        """The batch's own embeddings, float32."""
        if text_BLD.shape[-1] != self.dim:
            raise UserError(f"text_embeds are {text_BLD.shape[-1]} wide, not text.dim={self.dim}; make them equal.")
        return jnp.asarray(text_BLD, jnp.float32)
