"""Embeddings of many captions, computed once, to be stored beside the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.foreign.arrays import not_finite
from t2i_jax.text.tokenizer import TextTokenizer
from t2i_jax.types import Params
from t2i_jax.values import shown

DTYPES = ("float16", "bfloat16", "float32")
_STEP = 32  # lengths are rounded up to a multiple of this, so that few are compiled


def embed_captions(
    encoder: Any,
    params: Params,
    tokenizer: TextTokenizer,
    captions: Iterable[str],
    batch_size: int = 64,
    dtype: str = "float16",
) -> Iterator[np.ndarray]:
    """The embeddings (tokens, dim) of each caption, in order, without padding: all rows are to be
    seen.

    Args:
      encoder: a text encoder, such as `T5Text`; captions are cut at its `max_length`.
      captions: read as they are needed, `batch_size` at a time.
      dtype: of the result.

    Raises:
      UserError: an unknown dtype, a batch size below 1, or embeddings that are not finite.
    """
    one_of("dtype", dtype, DTYPES)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not positive; give 1 or more.")
    return _embeddings(encoder, params, tokenizer, captions, batch_size, dtype)


def _embeddings(encoder, params, tokenizer, captions, batch_size, dtype):
    embed = jax.jit(
        lambda params, ids_BL, mask_BL: encoder.embed(params, ids_BL, mask_BL).astype(dtype)
    )
    params = jax.tree.map(jnp.asarray, params)
    captions = iter(captions)
    while batch := list(itertools.islice(captions, batch_size)):
        ids_BL, mask_BL = tokenizer(batch + [""] * (batch_size - len(batch)), encoder.max_length)
        last = np.flatnonzero(mask_BL.any(axis=0)).max(initial=0) + 1
        longest = min(-(-int(last) // _STEP) * _STEP, encoder.max_length)
        embeds_BLD = np.asarray(embed(params, ids_BL[:, :longest], mask_BL[:, :longest]))
        for caption, embeds_LD, mask_L in zip(batch, embeds_BLD, mask_BL[:, :longest]):
            kept_LD = embeds_LD[mask_L]
            check_finite(kept_LD, caption, dtype)
            yield kept_LD


def check_finite(embeds: np.ndarray, caption: str, dtype: str) -> None:
    """Refuses embeddings, of a caption or of its image, that are not finite in the dtype in which
    they are to be stored.
    """
    if unfit := not_finite(embeds):
        raise UserError(
            f"the embeddings of {shown(caption)} have {unfit} in dtype={dtype!r}; store them as "
            "bfloat16 or float32, and check the encoder's weights."
        )
