"""Checks that the networks over image tokens share."""

from __future__ import annotations

from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.types import Array

_KNOWN_LATER = ("fmap_size", "codebook_size", "text_embed_dim")


def check(model: Any, fields: tuple[str, ...]) -> None:
    """Refuses sizes below 1 and a dropout outside [0, 1)."""
    for field in (*fields, *_KNOWN_LATER):
        value = getattr(model, field)
        if value is not None and value < 1:
            raise UserError(f"{field}={value} is not positive; give 1 or more.")
    if not 0 <= model.dropout < 1:
        raise UserError(f"dropout={model.dropout} is outside [0, 1); try 0.1.")


def need_all(model: Any) -> None:
    """Refuses to build a network some of whose sizes nobody gave."""
    for field in _KNOWN_LATER:
        if getattr(model, field) is None:
            raise UserError(f"{field}=None of {type(model).__name__} is not known; give it, or build a PartiTask.")


def check_text(model: Any, text_embeds_BLD: Array) -> None:
    """Refuses text embeddings of another width than the network's."""
    if text_embeds_BLD.ndim != 3 or text_embeds_BLD.shape[-1] != model.text_embed_dim:
        raise UserError(
            f"text_embeds has shape {text_embeds_BLD.shape}; the network wants (batch, length, "
            f"text_embed_dim={model.text_embed_dim})."
        )
