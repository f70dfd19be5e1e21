"""Words for messages: plurals, articles, names of types."""

from __future__ import annotations

from typing import Any


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def with_article(noun: str) -> str:
    """A noun with its article: "a circle", "an image"."""
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def named(value: Any) -> str:
    """The type of a value with its article: "a list", "an int"; None is "None"."""
    if value is None:
        return "None"
    return with_article(type(value).__name__)
