"""What a user gives to be painted, checked and as arrays: captions, negative captions, pictures to complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError


def encode(text: Any, text_tokenizer: Any, prompts: Any, field: str) -> dict[str, np.ndarray]:
    """{"text" or "text_embeds", "text_mask"} of captions, or of a pair (embeddings, mask) where text is stored.

    Raises:
      UserError: no captions, something that is no caption, or embeddings of another shape.
    """
    if text.entry == "text_embeds":
        return _stored(text, prompts, field)
    if isinstance(prompts, str):
        raise UserError(f"{field}={prompts!r} is one string; give a list of captions, [{prompts!r}].")
    if not isinstance(prompts, Sequence) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"{field} holds something that is no caption; give a list of strings.")
    if not prompts:
        raise UserError(f"{field}=[] is empty; give at least one caption.")
    if text_tokenizer is None:
        raise UserError("text_tokenizer=None of the system cannot read captions; give the one it was trained with.")
    ids_PL, mask_PL = text_tokenizer(list(prompts), text.max_length)
    return {"text": np.asarray(ids_PL, np.int32), "text_mask": np.asarray(mask_PL, bool)}


def negatives(negative: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The same under the names "negative_...", one per prompt."""
    found = len(negative["text_mask"])
    if found != count:
        raise UserError(f"negative_prompts has {found} entries for {count} prompts; give one for each.")
    return {f"negative_{name}": value for name, value in negative.items()}


def completion(
    tokenizer: Any, count: int, init_images: Any, known_rows: int | None, mask: Any
) -> dict[str, np.ndarray]:
    """{"init": pictures, "known": (P, N) bool} for completion; {} without it.

    Raises:
      UserError: pictures of another number, size or dtype; no known part or two; a part outside the grid.
    """
    if init_images is None:
        if known_rows is not None or mask is not None:
            raise UserError("known_rows and mask say what to keep of init_images; give init_images too.")
        return {}
    images, (rows, columns) = np.asarray(init_images), tokenizer.grid
    shape = (count, tokenizer.image_size, tokenizer.image_size, tokenizer.channels)
    if images.shape != shape or images.dtype != np.uint8:
        raise UserError(f"init_images is {images.dtype} {images.shape}; give uint8 {shape}, one picture per prompt.")
    if (known_rows is None) == (mask is None):
        raise UserError("init_images needs either known_rows or mask, to say which part is kept; give one of them.")
    if mask is None:
        if isinstance(known_rows, bool) or not isinstance(known_rows, (int, np.integer)) or not 0 < known_rows <= rows:
            raise UserError(f"known_rows={known_rows} is not a number from 1 to {rows}, the rows of tokens.")
        known = np.broadcast_to(np.arange(rows)[:, None] < known_rows, (count, rows, columns))
    else:
        known = np.asarray(mask)
        if known.dtype != np.bool_ or known.shape not in ((rows, columns), (count, rows, columns)):
            raise UserError(f"mask is {known.dtype} {known.shape}; give bool {(rows, columns)}, True where to keep.")
        known = np.broadcast_to(known, (count, rows, columns))
    return {"init": images, "known": known.reshape(count, rows * columns)}


def check_count(name: str, value: Any) -> None:
    """Refuses what is neither None nor a number from 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{name}={value!r} is not a number from 1; give 1 or more.")


def _stored(text, prompts, field):
    if not isinstance(prompts, tuple) or len(prompts) != 2:
        raise UserError(f"{field} are no embeddings; with stored text give the pair (embeddings, mask).")
    embeds_PLD, mask_PL = np.asarray(prompts[0], np.float32), np.asarray(prompts[1], bool)
    if embeds_PLD.ndim != 3 or embeds_PLD.shape[2] != text.dim or mask_PL.shape != embeds_PLD.shape[:2]:
        raise UserError(
            f"{field} has embeddings {embeds_PLD.shape} and mask {mask_PL.shape}; give (P, L, {text.dim}) and (P, L)."
        )
    if not len(embeds_PLD) or embeds_PLD.shape[1] > text.max_length:
        raise UserError(f"{field} has embeddings {embeds_PLD.shape}; P is at least 1 and L at most {text.max_length}.")
    missing = text.max_length - embeds_PLD.shape[1]
    return {
        "text_embeds": np.pad(embeds_PLD, ((0, 0), (0, missing), (0, 0))),
        "text_mask": np.pad(mask_PL, ((0, 0), (0, missing))),
    }
