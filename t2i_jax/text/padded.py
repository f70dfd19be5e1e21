"""A vocabulary whose captions are padded with another id than its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2i_jax.text import bpe
from t2i_jax.text.tokenizer import TextTokenizer


class Padded:
    """The tokenizer of a network with another id of padding, wherever that stands in a caption, as
    x-clip 0.14.4 reads its `text_pad_id` (x_clip.py, `forward`: `text != self.text_pad_id`).

    Attributes:
      words: the vocabulary, a `TextTokenizer`, whose own padding is 0. pad_id: that of its captions
        here. vocab_size: all ids are below it.
    """

    def __init__(self, words: Any, pad_id: int):
        self.words, self.pad_id = words, pad_id
        self.vocab_size = words.vocab_size

    @property
    def unknown(self) -> int:
        """The id of letters that the vocabulary lacks; an AttributeError where it has none."""
        return self.words.unknown

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, max_length) int32, padded with `pad_id`, and mask bool, True at other ids."""
        ids_BL, mask_BL = self.words(texts, max_length)
        ids_BL = np.where(mask_BL, ids_BL, self.pad_id)
        return ids_BL, ids_BL != self.pad_id

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each caption uncut, the end included."""
        return self.words.lengths(texts)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the vocabulary, which is read without this padding."""
        self.words.save(folder)


def without_ends(words: TextTokenizer | None) -> TextTokenizer | None:
    """The BPE of a CLIP without its start and end tokens, as `ClipBpe.without_ends`; any other
    vocabulary as it is.
    """
    if isinstance(words, Padded):
        inside = without_ends(words.words)
        return words if inside is None else Padded(inside, words.pad_id)
    return words.without_ends() if isinstance(words, bpe.ClipBpe) else words
