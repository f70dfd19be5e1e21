"""The byte-level BPE of CLIP (Radford et al. 2021, section 2.4): lower-case pieces between a start
and an end token, or as x-clip and DALLE2-pytorch have them, without these two.
"""

from __future__ import annotations

import html
import json
import os
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign import json_file, vocabulary_file
from t2i_jax.foreign.file import refusing

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
_SETTINGS = "tokenizer_config.json"  # beside them, as transformers writes it
_NO_ENDS = {"add_bos_token": False, "add_eos_token": False}
_REMEDY = "fetch it again"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipBpe:
    """The tokenizer of CLIP, from a tokenizer.json of the `tokenizers` package.

    Attributes:
      vocab_size: all ids are below it. ends: whether captions stand between a start and an end
        token. mends: whether captions are mended first, as `MendingBpe` does.
    """

    mends: ClassVar[bool] = False

    def __init__(self, tokenizer_json: str, path: str = WHOLE, ends: bool = True):
        self._json = tokenizer_json
        self._tokenizer = vocabulary_file.tokenizers(tokenizer_json, path)
        self.ends = ends
        found = [self._tokenizer.token_to_id(token) for token in (START, END)]
        if None in found:
            raise UserError(
                f"tokenizer={path!r} has no {START} or no {END}; give the tokenizer of a CLIP."
            )
        self._start, self._end = ([token] if self.ends else [] for token in found)
        self.vocab_size = vocabulary_file.size_of(self._tokenizer)

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, max_length) int32, padded with 0, and mask bool, True from the start to the end
        token, or at all pieces; longer captions are cut before the end token.
        """
        if max_length < (least := 2 if self.ends else 1):
            raise UserError(
                f"max_length={max_length} leaves no room for a caption; give {least} or more, for "
                "example 77."
            )
        ids_BL = np.zeros((len(texts), max_length), np.int32)
        mask_BL = np.zeros((len(texts), max_length), bool)
        for row, pieces in enumerate(self._encode(texts)):
            room = max_length - len(self._start + self._end)
            ids = [*self._start, *pieces[:room], *self._end]
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = True
        return ids_BL, mask_BL

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each caption uncut, both ends included."""
        ends = len(self._start + self._end)
        return np.array([len(ids) + ends for ids in self._encode(texts)], np.int32)

    def without_ends(self) -> ClipBpe:
        """The same tokenizer without start and end tokens."""
        return ClipBpe(self._json, ends=False)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json, and beside it that there are no ends where there are none."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WHOLE).write_text(self._json, encoding="utf-8")
        if not self.ends:
            (folder / _SETTINGS).write_text(json.dumps(_NO_ENDS), encoding="utf-8")

    def __reduce__(self):
        return ClipBpe, (self._json, WHOLE, self.ends)

    def _encode(self, texts):
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]


class MendingBpe(ClipBpe):
    """The tokenizer of CLIP as the packages of OpenAI and OpenCLIP use it, which mend a caption
    first: transformers, and so CLIP score and PickScore, do not.

    Curly quotes become straight ones and HTML entities the characters that they stand for. The
    rest of what their ftfy does is left out: text in a wrong encoding, ligatures, characters of
    full width and control characters stay as they are. `save` writes what `ClipBpe` reads.
    """

    mends: ClassVar[bool] = True

    def __init__(self, clip: ClipBpe):
        super().__init__(clip._json)

    def __reduce__(self):
        return MendingBpe, (ClipBpe(self._json),)

    def _encode(self, texts):
        return super()._encode([_mended(text) for text in texts])


_QUOTES = str.maketrans(  # those of ftfy's uncurl_quotes
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)


def _mended(text):
    # ftfy takes a text with "<" for HTML, in which entities stay
    text = (text if "<" in text else html.unescape(text)).translate(_QUOTES)
    return html.unescape(html.unescape(text))


def is_clip(tokenizer_json: str) -> bool:
    """Whether a tokenizer.json is a CLIP's: it has a start and an end token of that name."""
    return START in tokenizer_json and END in tokenizer_json


def has_ends(folder: str | os.PathLike) -> bool:
    """Whether the tokenizer of a folder puts captions between a start and an end token: unless its
    tokenizer_config.json says that it adds neither.
    """
    path = pathlib.Path(folder) / _SETTINGS
    if not path.exists():
        return True
    said = json_file.an_object(
        json_file.read(path, "tokenizer", _REMEDY), f"tokenizer={str(path)!r}", _REMEDY
    )
    return any(said.get(name) is not value for name, value in _NO_ENDS.items())


def from_files(folder: str | os.PathLike) -> ClipBpe:
    """The tokenizer of a folder with vocab.json and merges.txt, as transformers saves them.

    Raises:
      UserError: files that are none, or that do not fit each other.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    folder = pathlib.Path(folder)
    where = str(folder / VOCABULARY)
    vocabulary = json_file.an_object(
        json_file.read(folder / VOCABULARY, "tokenizer", _REMEDY), f"tokenizer={where!r}", _REMEDY
    )
    merges = _merges(folder / MERGES)
    with refusing(where, "tokenizer", "the vocabulary of a CLIP", _REMEDY):
        tokenizer = Tokenizer(
            models.BPE(
                vocab=dict(vocabulary), merges=merges, unk_token=END, end_of_word_suffix="</w>",
                continuing_subword_prefix="", fuse_unk=False,
            )
        )  # fmt: skip
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        ends = [end for end in (START, END) if end in vocabulary]
        tokenizer.add_special_tokens([AddedToken(end, normalized=False) for end in ends])
        whole = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)
    return ClipBpe(whole, where, has_ends(folder))


def _merges(path):
    """The pairs of merges.txt, whose first line may be a comment with its version."""
    with refusing(path, "tokenizer", "UTF-8", _REMEDY):
        lines = vocabulary_file.read(path).decode("utf-8-sig").splitlines()
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise UserError(
            f"tokenizer={str(path)!r} has the line {' '.join(wrong)!r}, no pair; {_REMEDY}."
        )
    return pairs
