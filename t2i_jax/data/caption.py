"""Captions, wherever they stand: files beside images, members of archives, cells of tables."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from t2i_jax.data.ledger import Ledger
from t2i_jax.data.source import BadSample

ENDINGS = (".txt", ".caption", ".json")
"""Endings of files that hold the caption of an image, in the order in which they are looked for:
a.txt, a.caption, a.json, and then the same behind the whole name, a.png.txt and so on."""
KEYS = (
    "caption",
    "captions",
    "text",
    "texts",
    "prompt",
    "description",
    "sentence",
    "sentences",
)
"""Columns of a table, and keys of JSON, that may hold a caption; the first that is there is
read."""
LONGEST = 131_072
"""The most characters of a caption and of a cell."""
SEVERAL = "image with several captions, of which the first is read"
"""The reason under which a ledger counts an image with several captions."""
JOINED = "caption of several lines, which are read as one"
"""The reason under which a ledger counts a text file with more lines than one."""
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MOST_BYTES = 2**24
"""The largest file that is read for a caption."""


def clean_caption(text: Any, name: str) -> str:
    """A caption with single spaces between its words.

    Args:
      text: str, or bytes in UTF-8, or in UTF-16 with its mark. name: of the sample, for messages.

    Raises:
      BadSample: "no caption", "empty caption", "caption is not UTF-8" or "caption of more than
        131072 characters".
    """
    text = " ".join(_decoded(text, name).replace("\0", " ").split())
    if not text:
        raise BadSample("empty caption", name)
    return text


def _decoded(text, name):
    """A string of the letters of a caption, as `clean_caption` takes it."""
    too_long = BadSample(f"caption of more than {LONGEST} characters", name)
    if isinstance(text, bytes):
        if len(text) > 4 * LONGEST:
            raise too_long
        try:
            text = text.decode("utf-16" if text.startswith(_WIDE) else "utf-8-sig")
        except UnicodeDecodeError:
            raise BadSample("caption is not UTF-8", name) from None
    if not isinstance(text, str):
        raise BadSample("no caption", name)
    if len(text) > LONGEST:
        raise too_long
    # halves of letters, which JSON can spell
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadSample("caption is not UTF-8", name)
    text = text.strip("\0")  # as text of a fixed length is filled up
    if text.count("\0") > len(text) // 4:  # UTF-16 without its mark: every other letter
        raise BadSample("caption is not UTF-8", name)
    return text


def in_file(data: bytes, file_name: str, name: str, in_part: Ledger) -> str:
    """The caption that a file holds, clean.

    Args:
      file_name: of the file, which ends in one of `ENDINGS`. name: for messages. in_part: where
        it is noted that the file holds several, or several lines.

    Raises:
      BadSample: as `clean_caption`, or "caption is not JSON".
    """
    if not file_name.lower().endswith(".json"):
        text = _decoded(data, name)
        if sum(bool(line.strip()) for line in text.splitlines()) > 1:
            in_part.note(JOINED, name)
        return clean_caption(text, name)
    try:
        values = json.loads(data)
    except UnicodeDecodeError:
        raise BadSample("caption is not UTF-8", name) from None
    except (ValueError, RecursionError):
        raise BadSample("caption is not JSON", name) from None
    if are_several(values):
        in_part.note(SEVERAL, name)
    return clean_caption(among(values), name)


def beside(names: Iterable[str]) -> Iterable[str]:
    """Names of the files that may hold the caption of an image, best first.

    Args:
      names: of the image, with its ending and without, the better one first.
    """
    for name in dict.fromkeys(names):
        yield from (name + ending for ending in ENDINGS)


def among(values: Any) -> str | None:
    """The caption among values by name; None where there is none.

    Under several names of `KEYS` the first text counts, of several captions the first.
    """
    return first_text(_chosen(values))


def are_several(values: Any) -> bool:
    """Whether `among` takes one of several captions."""
    return has_several(_chosen(values))


def _chosen(values):
    if not isinstance(values, Mapping):
        return None
    found = (values.get(key) for key in KEYS)
    return next((value for value in found if isinstance(first_text(value), str)), None)


def first_text(value: Any) -> Any:
    """The first text in what may be a text, several of them, or a mapping that holds them."""
    if isinstance(value, Mapping):
        return first_text(next((value[name] for name in KEYS if name in value), None))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return first_text(value[0]) if value else None
    return value


def has_several(value: Any) -> bool:
    """Whether `first_text` takes one of several texts."""
    if isinstance(value, Mapping):
        return has_several(next((value[name] for name in KEYS if name in value), None))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    is_list = isinstance(value, (list, tuple))
    return is_list and (len(value) > 1 or any(map(has_several, value)))
