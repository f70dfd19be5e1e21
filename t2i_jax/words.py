"""Words of messages."""

from __future__ import annotations

from typing import Any


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def named(value: Any) -> str:
    """The type of a value with its article: "a list", "an int"; None is "None"."""
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"an {kind}" if kind[:1] in "aeiouAEIOU" else f"a {kind}"
