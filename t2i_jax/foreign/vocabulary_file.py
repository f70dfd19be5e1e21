"""Vocabularies: the models of the sentencepiece and the tokenizers package.

Both libraries accept files with which they fail or crash later, when a text is encoded; so a text
is encoded at once.
"""

from __future__ import annotations

import pathlib
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.foreign import file, json_file

_TRIED = ["", "a red circle above a blue square", "Zürich \u2603 1,000!"]
_REMEDY = "fetch it again, or give the vocabulary of a T5"
_LIMIT = 256 * 2**20  # bytes


def read(path: pathlib.Path) -> bytes:
    """The bytes of a vocabulary's file; UserError where it is none, or a Git LFS pointer."""
    path = file.check(path, "tokenizer", _LIMIT)
    with file.refusing(path, "tokenizer", "a vocabulary", _REMEDY):
        return path.read_bytes()


def sentencepiece(model: bytes, where: str) -> Any:
    """The processor of a spiece.model.

    Args:
      where: the file, for messages.

    Raises:
      UserError: bytes that are no such model, or one without an end token.
    """
    import sentencepiece

    with file.refusing(where, "tokenizer", "a sentencepiece model", _REMEDY):
        processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = processor.vocab_size()
        if not 0 <= processor.eos_id() < size:
            raise UserError(f"tokenizer={where!r} has no end token </s>; give a T5's.")
        _check_ids(where, size, processor.encode(_TRIED))
        return processor


def tokenizers(text: str, where: str) -> Any:
    """The tokenizer of a tokenizer.json, which neither pads nor cuts.

    Args:
      where: the file, for messages.

    Raises:
      UserError: a text that is no such tokenizer, or one that can't encode.
    """
    import tokenizers

    json_file.an_object(
        json_file.parse(text, f"tokenizer={where!r}", _REMEDY), f"tokenizer={where!r}", _REMEDY
    )
    with file.refusing(where, "tokenizer", "a tokenizer of the tokenizers package", _REMEDY):
        tokenizer: Any = tokenizers.Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        size = size_of(tokenizer)
        encoded = tokenizer.encode_batch(_TRIED, add_special_tokens=False)
        _check_ids(where, size, [one.ids for one in encoded])
        return tokenizer


def size_of(tokenizer: Any) -> int:
    """The size of a vocabulary of the tokenizers package: one more than its highest id, as it may
    leave ids out.
    """
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _check_ids(where, size, ids):
    highest = max((one for row in ids for one in row), default=0)
    if size < 1 or not highest < size:
        raise UserError(
            f"tokenizer={where!r} gives the id {highest} and has {size} pieces; {_REMEDY}."
        )
