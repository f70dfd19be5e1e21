"""Captions as token ids for a network that brings its own text network, as CLIP does."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.files import replacing
from t2i_jax.text.encoder import CaptionEncoder, encode_captions
from t2i_jax.text.padded import Padded
from t2i_jax.text.tokenizer import TextTokenizer, check_size, load, train_bpe
from t2i_jax.types import Array, Key, Params

_CAPTIONS_FOR_VOCABULARY = 50_000


@dataclasses.dataclass(frozen=True)
class CaptionIds(CaptionEncoder):
    """A `TextEncoder` without a network: it makes token ids of captions, and no embeddings.

    Attributes:
      vocab_size: ids are below it. max_length: tokens of a caption; what is longer is cut.
      source: folder that holds the vocabulary (`spiece.model`, `tokenizer.json`, or `vocab.json`
        with `merges.txt`), which is copied into the run; None: one is trained on the captions.
      pad_id: id of padding, in place of the 0 of every vocabulary; any other than 0 is padding
        wherever it stands in a caption.
    """

    vocab_size: int
    max_length: int
    source: str | None = None
    pad_id: int = 0

    trainable: ClassVar[bool] = False
    entry: ClassVar[str] = "text"  # of the batch

    def __post_init__(self):
        for field in ("vocab_size", "max_length"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not positive; give 1 or more.")
        if not 0 <= self.pad_id < self.vocab_size:
            raise UserError(
                f"pad_id={self.pad_id} is none of the ids below vocab_size={self.vocab_size}; give "
                "one of them, for example 0."
            )

    @property
    def dim(self) -> int:
        """Width of the embeddings, of which there are none."""
        return 0

    def init(self, key: Key) -> Params:
        """Empty parameters: the text network belongs to the system."""
        return {}

    def embed(
        self, params: Params, text_BL: Array, mask_BL: Array, key: Key | None = None
    ) -> Array:
        """Refuses to embed: a system with such captions embeds them itself.

        Raises:
          UserError: always.
        """
        raise UserError(
            "text=CaptionIds(...) makes token ids and no embeddings; give a text encoder, for "
            "example ClipText."
        )

    @property
    def trains_vocabulary(self) -> bool:
        """Whether there is no `source` of it."""
        return self.source is None

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Writes the vocabulary of `source` into `folder`, or one that is trained on the first
        50,000 captions, unless there is one.

        Raises:
          UserError: a `source` of another size, or another id of padding for a vocabulary that is
            trained, than its own.
        """
        folder = pathlib.Path(folder)
        if folder.is_dir():
            return
        if self.source is not None:
            tokenizer = load(self.source)
            check_size(tokenizer, self.vocab_size, f"text.source={self.source!r}")
        elif self.pad_id:
            raise UserError(
                f"text_pad_id={self.pad_id} would be the id of a word in the vocabulary that is "
                "trained on the captions, whose padding is 0; leave it out, or give text.source."
            )
        else:
            first = list(itertools.islice(captions(), _CAPTIONS_FOR_VOCABULARY))
            tokenizer = train_bpe(first, self.vocab_size)
        with replacing(folder) as temporary:
            tokenizer.save(temporary)

    def tokenizer(self, folder: str | os.PathLike | None = None) -> TextTokenizer | None:
        """The vocabulary that `prepare` wrote into `folder`, else that of `source`.

        None where there is neither, as for weights of PyTorch: prompts are then token ids.
        """
        if folder is None or not os.path.isdir(folder):
            folder = self.source
        if folder is None:
            return None
        tokenizer = load(folder)
        check_size(tokenizer, self.vocab_size, f"tokenizer={os.fspath(folder)!r}")
        return tokenizer if not self.pad_id else Padded(tokenizer, self.pad_id)

    def encode(
        self, tokenizer: TextTokenizer | None, prompts: Any, field: str
    ) -> dict[str, np.ndarray]:
        """Token ids of captions and their mask; or those of ids that are given, an array (P, L) of
        whole numbers with `pad_id` for padding.

        Raises:
          UserError: captions where there is no vocabulary, ids beyond it, or longer rows.
        """
        if getattr(prompts, "ndim", 0) == 2 and np.asarray(prompts).dtype.kind in "iu":
            return self._given(np.asarray(prompts), field)
        if tokenizer is None:
            raise UserError(
                f"{field} are captions, and this system came without a vocabulary; give token ids, "
                f"an array (captions, tokens) of whole numbers with {self.pad_id} for padding."
            )
        return encode_captions(tokenizer, prompts, self.max_length, field)

    def _given(self, ids_PL, field):
        if ids_PL.shape[1] > self.max_length or not ids_PL.size:
            raise UserError(
                f"{field} have shape {ids_PL.shape}; give 1 to {self.max_length} tokens for each."
            )
        if ids_PL.min() < 0 or ids_PL.max() >= self.vocab_size:
            raise UserError(
                f"{field} hold ids from {ids_PL.min()} to {ids_PL.max()}; give ids from 0 to "
                f"{self.vocab_size - 1}."
            )
        width = self.max_length - ids_PL.shape[1]
        ids_PL = ids_PL.astype(np.int32)
        padded_PL = np.pad(ids_PL, ((0, 0), (0, width)), constant_values=self.pad_id)
        is_word_PL = padded_PL != self.pad_id
        if not self.pad_id:
            # an id 0 that others follow is no padding: CLIP's vocabulary has a piece there
            is_word_PL = np.cumsum(is_word_PL[:, ::-1], axis=1)[:, ::-1] > 0
        return {"text": padded_PL, "text_mask": is_word_PL}
