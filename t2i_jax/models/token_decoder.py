"""The base class of the networks that predict image tokens one after the other, and what they
refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn

from t2i_jax.errors import UserError
from t2i_jax.nn.transformer import grow
from t2i_jax.types import Array

_KNOWN_LATER = ("fmap_size", "codebook_size", "text_embed_dim")


class TokenDecoder(nn.Module):
    """The grid of tokens and the KV cache of a decoder over image tokens that attends to a text.

    A subclass has the fields `fmap_size`, `codebook_size`, `text_embed_dim` and `dropout`, and the
    methods `_text(text_embeds_BLD, text_mask_BL, keep_B) -> (text_BLD, mask_BL)`, which brings the
    text to the form that the layers attend to, and `_layer_cache(text_BLD, length)`, the cache of
    all layers as `decode_layers` takes it.
    """

    past_names: ClassVar[tuple[str, ...]]  # the entries of the cache that hold past positions

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.fmap_size, self.fmap_size)

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return self.fmap_size**2

    def init_cache(
        self,
        text_embeds_BLD: Array,
        text_mask_BL: Array,
        keep_B: Array | None = None,
        length: int | None = None,
    ) -> dict[str, Any]:
        """The KV cache that `decode` carries from token to token: of past tokens (none yet) and of
        the text, per layer.

        Args:
          text_embeds_BLD, text_mask_BL, keep_B: as in a call of the network.
          length: tokens that the cache holds; None: `num_tokens`.
        """
        text_BLD, mask_BL = self._text(text_embeds_BLD, text_mask_BL, keep_B)
        return {
            "layers": self._layer_cache(text_BLD, length or self.num_tokens),
            "text_mask": mask_BL,
        }

    @nn.nowrap
    def grow_cache(self, cache: Mapping[str, Any], length: int) -> dict[str, Any]:
        """The same KV cache, `length` tokens long."""
        return {**cache, "layers": grow(cache["layers"], self.past_names, length)}


def check_sizes(model: Any, *fields: str) -> None:
    """Refuses sizes below 1 and a dropout outside [0, 1)."""
    for field in (*fields, *_KNOWN_LATER):
        value = getattr(model, field)
        if value is not None and value < 1:
            raise UserError(f"{field}={value} is not positive; give 1 or more.")
    if not 0 <= model.dropout < 1:
        raise UserError(f"dropout={model.dropout} is outside [0, 1); try 0.1.")


def check_complete(model: Any) -> None:
    """Refuses to build a network some of whose sizes are still None."""
    for field in _KNOWN_LATER:
        if getattr(model, field) is None:
            raise UserError(
                f"{field}=None of {type(model).__name__} is not known; give it, or leave it to "
                "the task that knows it."
            )


def check_text(model: Any, text_embeds_BLD: Array) -> None:
    """Refuses text embeddings of another width than the network's."""
    if text_embeds_BLD.ndim != 3 or text_embeds_BLD.shape[-1] != model.text_embed_dim:
        raise UserError(
            f"text_embeds has shape {text_embeds_BLD.shape}; the network wants (batch, length, "
            f"text_embed_dim={model.text_embed_dim})."
        )
