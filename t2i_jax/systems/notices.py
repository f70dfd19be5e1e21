"""Lines on stderr about what was done with what a user gave to a call."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

from t2i_jax.terminal import say

_TOLD = contextvars.ContextVar("told", default=frozenset(("images", "others")))


@contextlib.contextmanager
def quiet(*, images: bool = True) -> Iterator[None]:
    """Keeps messages back within the body: for images that nobody asked for one by one.

    Args:
      images: False: what becomes of images that are given is told all the same.
    """
    token = _TOLD.set(_TOLD.get() - ({"images", "others"} if images else {"others"}))
    try:
        yield
    finally:
        _TOLD.reset(token)


def tell(sentence: str, of: Literal["images", "others"] = "others") -> None:
    """Writes a line to stderr about what was done with what a user gave.

    Args:
      of: "images": what became of images, see `quiet`.
    """
    if of in _TOLD.get():
        say(f"t2i: {sentence}.")
