"""Tokenizers, from captions to token ids: T5's own files, or a small vocabulary trained on the
captions of the data.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from t2i_jax import paths
from t2i_jax.errors import UserError
from t2i_jax.foreign import vocabulary_file
from t2i_jax.foreign.file import refusing
from t2i_jax.text import bpe

PAD, EOS, UNKNOWN = 0, 1, 2  # ids, in T5's vocabulary and in ours
_SPECIAL = ("<pad>", "</s>", "<unk>")
_SPECIAL_IN_TEXT = re.compile(f"({'|'.join(_SPECIAL)})")
_WORD = "\u2581"  # begins a word
_SENTENCEPIECE, _TOKENIZERS = "spiece.model", "tokenizer.json"


class TextTokenizer(Protocol):
    """Token ids of captions.

    Attributes:
      vocab_size: all ids are below it. Id 0 is padding, and every caption ends in an end token but
        for those of a `ClipBpe` without ends.

    One that does not know all letters has an attribute `unknown`: the id of those that it lacks.
    """

    vocab_size: int

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, max_length) int32 and mask bool, True at tokens.

        Longer captions are cut before the end token.
        """
        ...

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each caption uncut, the end included: those above `max_length` would be cut."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load` reads."""


class SentencePiece:
    """The tokenizer of a spiece.model file, as T5 uses it: pieces, then the end token."""

    def __init__(self, model: bytes, path: str = _SENTENCEPIECE):
        self._model = model
        self._processor = vocabulary_file.sentencepiece(model, path)
        self._eos, self.unknown = self._processor.eos_id(), self._processor.unk_id()
        self.vocab_size = self._processor.vocab_size()

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, max_length) int32 and mask bool."""
        return _padded(self._encode(texts), self._eos, max_length)

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each caption uncut, the end included."""
        return np.array([len(ids) + 1 for ids in self._encode(texts)], np.int32)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes spiece.model."""
        _folder(folder).joinpath(_SENTENCEPIECE).write_bytes(self._model)

    def __reduce__(self):
        return SentencePiece, (self._model,)

    def _encode(self, texts):
        ids = self._processor.encode(list(texts))
        for row, text in enumerate(texts):
            if _SPECIAL_IN_TEXT.search(text):  # stands for itself, as in T5's tokenizer.json
                parts = map(self._part, _SPECIAL_IN_TEXT.split(text))
                ids[row] = list(itertools.chain.from_iterable(parts))
        return ids

    def _part(self, text):
        is_special = text in _SPECIAL
        return [self._processor.piece_to_id(text)] if is_special else self._processor.encode(text)


class Vocabulary:
    """The tokenizer of a tokenizer.json file of the `tokenizers` package: T5's, or one that
    `train_bpe` made.
    """

    def __init__(self, tokenizer_json: str, path: str = _TOKENIZERS):
        self._json = tokenizer_json
        self._tokenizer = vocabulary_file.tokenizers(tokenizer_json, path)
        eos = self._tokenizer.token_to_id("</s>")
        if eos is None or self._tokenizer.token_to_id("<pad>") != PAD:
            raise UserError(
                f"tokenizer={path!r} has no </s>, or its <pad> is not id 0; give the tokenizer of "
                "a T5."
            )
        self._eos, self.vocab_size = eos, vocabulary_file.size_of(self._tokenizer)
        self.unknown = self._tokenizer.token_to_id(_SPECIAL[UNKNOWN])

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, max_length) int32 and mask bool."""
        return _padded(self._encode(texts), self._eos, max_length)

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each caption uncut, the end included."""
        return np.array([len(ids) + 1 for ids in self._encode(texts)], np.int32)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json."""
        _folder(folder).joinpath(_TOKENIZERS).write_text(self._json, encoding="utf-8")

    def __reduce__(self):
        return Vocabulary, (self._json,)

    def _encode(self, texts):
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def load(folder: str | os.PathLike) -> TextTokenizer:
    """The tokenizer in a folder: from spiece.model, else from tokenizer.json, else from vocab.json
    and merges.txt.

    Raises:
      UserError: the folder has neither, or a damaged one.
    """
    folder = paths.given("tokenizer", folder)
    if (path := folder / _SENTENCEPIECE).exists():
        return SentencePiece(vocabulary_file.read(path), str(path))
    if (path := folder / _TOKENIZERS).exists():
        with refusing(path, "tokenizer", "UTF-8", "fetch it again"):
            text = vocabulary_file.read(path).decode("utf-8-sig")
        if bpe.is_clip(text):
            return bpe.ClipBpe(text, str(path), bpe.has_ends(folder))
        return Vocabulary(text, str(path))
    if (folder / bpe.VOCABULARY).exists() and (folder / bpe.MERGES).exists():
        return bpe.from_files(folder)
    raise UserError(
        f"tokenizer={str(folder)!r} has neither {_SENTENCEPIECE} nor {_TOKENIZERS}; give a T5's "
        "folder or a run's text_tokenizer."
    )


def check_size(tokenizer: TextTokenizer, rows: int, where: str) -> None:
    """Refuses a vocabulary whose ids reach beyond the rows of an embedding; spare rows are normal.

    Args:
      where: what holds the vocabulary, for the message.
    """
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{where} has a vocabulary of {tokenizer.vocab_size} pieces for an embedding of {rows} "
            "rows; give the vocabulary that belongs to the weights."
        )


def unknown_letters(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[str]:
    """The letters of each text that stand as unknown in its ids, each once; "" where none does."""
    unknown, found = getattr(tokenizer, "unknown", None), [""] * len(texts)
    if unknown is None or not texts:
        return found
    ids_BL, _ = tokenizer(texts, int(max(tokenizer.lengths(texts))))
    rows = np.flatnonzero((ids_BL == unknown).any(axis=1)).tolist()
    letters = [one for one in dict.fromkeys("".join(texts[row] for row in rows)) if one.strip()]
    alone_NL = tokenizer(letters, 8)[0] if letters else ()
    lacking = {one for one, ids_L in zip(letters, alone_NL) if unknown in ids_L}
    for row in rows:
        own = "".join(letter for letter in dict.fromkeys(texts[row]) if letter in lacking)
        found[row] = own or texts[row]  # letters that are known alone
    return found


def train_bpe(captions: Iterable[str], vocab_size: int) -> Vocabulary:
    """A vocabulary of characters and of the pieces that merging frequent pairs makes (Sennrich et
    al. 2016).

    The same captions give the same vocabulary. They are made lowercase; no piece reaches over a
    word's end. Ids 0, 1, 2 are padding, end and unknown; then come the most frequent characters,
    then what merging them makes, `vocab_size` in all at most.

    Raises:
      UserError: a `vocab_size` with no room for characters, or no captions.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    captions = list(captions)
    if vocab_size < 16:
        raise UserError(
            f"vocab_size={vocab_size} has no room for letters; give 16 or more, for example 256."
        )
    if not any(caption.strip() for caption in captions):
        raise UserError(
            f"captions ({len(captions)}) hold no text for a vocabulary; check the captions of the "
            "data."
        )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    alphabet = _alphabet(tokenizer, captions, vocab_size - len(_SPECIAL))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return Vocabulary(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False))


def _alphabet(tokenizer, captions, most):
    """The most frequent characters of captions, with the one that begins a word; of equally
    frequent ones the first in Unicode's order, where the trainer would leave out any.
    """
    often = collections.Counter()
    for start in range(0, len(captions), 1000):
        text = tokenizer.normalizer.normalize_str("\n".join(captions[start : start + 1000]))
        often.update(text)
        often[_WORD] += len(text.split())
    in_words = [one for one in often if tokenizer.pre_tokenizer.pre_tokenize_str(one)]
    return sorted(in_words, key=lambda one: (-often[one], one))[:most]


def _padded(
    ids: Sequence[Sequence[int]], eos: int, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    if max_length < 1:
        raise UserError(
            f"max_length={max_length} leaves no token; give 1 or more, for example 128."
        )
    ids_BL = np.full((len(ids), max_length), PAD, np.int32)
    mask_BL = np.zeros((len(ids), max_length), bool)
    for row, tokens in enumerate(ids):
        tokens = [*tokens[: max_length - 1], eos]
        ids_BL[row, : len(tokens)] = tokens
        mask_BL[row, : len(tokens)] = True
    return ids_BL, mask_BL


def _folder(folder: Any) -> pathlib.Path:
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
