"""Stored tokens: the origin that they must have for tasks that read them, and what an image and the
smaller one that it is made from must have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.models import encoder_side
from t2i_jax.models.image_tokenizer import ImageTokenizer
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


def pair_made_with(
    network: Any, tokenizer: Given | None, cond_tokenizer: Given | None
) -> Mapping[str, Any]:
    """What `made_with` gives for the images of a super-resolution, and likewise for the smaller
    ones that it is conditioned on.
    """
    cond = {"cond_num_tokens": network.cond_fmap_size**2}
    if cond_tokenizer is not None:
        cond["cond_tokenizer"] = _fingerprints(cond_tokenizer)
    return {**made_with(network, tokenizer), **cond}


def check_pair(own: ImageTokenizer, small: ImageTokenizer | None, cond_image_size: int) -> None:
    """Refuses tokenizers of an image and of a smaller one with which no super-resolution can be
    trained.

    Args:
      small: None: it is not known yet.

    Raises:
      UserError: the field, its value and a remedy.
    """
    if not 0 < cond_image_size < own.image_size or own.image_size % cond_image_size:
        raise UserError(
            f"cond_image_size={cond_image_size} is no part of image_size={own.image_size}; try "
            f"{own.image_size // 2}, or give the tokenizer of larger images."
        )
    if small is not None and small.codebook_size != own.codebook_size:
        raise UserError(
            f"superres_tokenizer.codebook_size={own.codebook_size} is not that of tokenizer, "
            f"{small.codebook_size}, and one table holds the vectors of both; make them equal."
        )
    if small is not None and small.channels != own.channels:
        raise UserError(
            f"superres_tokenizer.channels={own.channels} is not that of tokenizer, "
            f"{small.channels}, and both read the same image; make them equal."
        )


def _fingerprints(tokenizer):
    if not tokenizer.fingerprint:  # of a part that is still to be trained
        return ""
    side = encoder_side.fingerprint(tokenizer.network, tokenizer.weights)
    return (side, tokenizer.fingerprint)
