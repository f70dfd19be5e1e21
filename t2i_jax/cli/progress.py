"""Progress bars of commands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def progress(what: str, unit: str = "rec") -> Callable[..., Any]:
    """A function that wraps an iterable in a progress bar on a terminal; elsewhere it shows none.

    Args:
      what: the label of the bar. unit: the name of one element.
    """
    from tqdm import tqdm

    return functools.partial(tqdm, desc=what, unit=unit, disable=None)
