"""Silence about a full disk: the traces that the libraries which write checkpoints print of it are
not shown, as one sentence tells it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

from t2i_jax.errors import is_full


def hush() -> None:
    """Keeps Orbax, asyncio and TensorStore from printing anything of a full disk; what else they
    have to say goes where it went.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_told)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _is_late(unraisable):
            before(unraisable)

    sys.unraisablehook = hook


def _is_told(record):
    error = record.exc_info[1] if record.exc_info else ValueError(record.getMessage())
    files = [
        frame.filename for frame in traceback.extract_tb(getattr(error, "__traceback__", None))
    ]
    is_orbax = record.name == "absl" or any("orbax" in s for s in (record.getMessage(), *files))
    return not (is_orbax and isinstance(error, Exception) and is_full(error))


def _is_late(unraisable):
    """Whether a thread of TensorStore, called from nowhere in Python, has come to an event loop
    that Orbax closed when the first of its writes failed.
    """
    trace = unraisable.exc_traceback
    called = None if trace is None else trace.tb_frame.f_code.co_name
    is_closed = str(unraisable.exc_value) == "Event loop is closed"
    return unraisable.object is None and called == "call_soon_threadsafe" and is_closed
