"""Docstrings as the text of `--help`: the summary, the paragraphs, and a text for each name."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):\s*$", re.MULTILINE)


def summary(what: Any) -> str:
    """The first paragraph of a docstring as one line; "" without one."""
    return " ".join(_text(what).split("\n\n")[0].split())


def paragraphs(what: Any) -> list[str]:
    """The paragraphs before the first section, a line each."""
    before = _SECTION.split(_text(what))[0]
    return [" ".join(block.split()) for block in before.split("\n\n") if block.strip()]


def of_names(what: Any, names: Iterable[str]) -> dict[str, str]:
    """The texts for these names in the sections "Args" and "Attributes" of a docstring.

    Several may share a text ("b1, b2: of Adam."), and a line may hold several ("steps: updates.
    batch_size: images of an update."). A field that a class does not describe may be described by
    its bases. A name that is not described is missing.
    """
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(what) if inspect.isclass(what) else (what,)):
        found |= _of_names(one, names)
    return found


def _of_names(what, names):
    parts = _SECTION.split(_text(what))
    sections = {parts[i]: parts[i + 1] for i in range(1, len(parts) - 1, 2)}
    text = " ".join((sections.get("Args", "") + " " + sections.get("Attributes", "")).split())
    known = "|".join(sorted((re.escape(name) for name in names), key=len, reverse=True))
    if not known or not text:
        return {}
    label = rf"(?:^|(?<=[.;:?!)] ))((?:{known})(?:, (?:{known}))*): "
    pieces = re.split(label, text)
    return {
        name: pieces[i + 1].strip()
        for i in range(1, len(pieces) - 1, 2)
        for name in pieces[i].split(", ")
    }


def wrapped(text: str, width: int, indent: str) -> str:
    """A text in lines of at most `width` columns, each after `indent`."""
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _text(what):
    return inspect.cleandoc(what.__doc__ or "")
