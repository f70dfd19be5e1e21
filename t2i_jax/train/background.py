"""Compiling in a thread of its own, so that this one goes on hearing signals.

The compiler lasts for minutes and can't be broken off; while it runs in the main thread, Python
answers no signal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax

_NAME = "compiling"
_OFTEN = 0.1  # seconds between two questions whether to give up


def compile_in_background(
    lowered: jax.stages.Lowered,
    options: Mapping[str, Any] | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> jax.stages.Compiled | None:
    """The compiled program; None when it was given up, and then the thread goes on for nothing.

    Args:
      options: of the compiler.
      give_up: asked again and again meanwhile.

    Raises:
      Exception: that of the compiler.
    """
    made: list[Any] = []

    def work():
        try:
            made.append(lowered.compile(compiler_options=options))
        except BaseException as error:  # raised where it is waited for
            made.append(error)

    thread = threading.Thread(target=work, name=_NAME, daemon=True)
    thread.start()
    while thread.is_alive():
        if give_up():
            return None
        thread.join(_OFTEN)
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]


def is_compiling() -> bool:
    """Whether a program that was given up is still being compiled: a process that ends in the
    usual way meanwhile would crash.
    """
    return any(thread.name == _NAME for thread in threading.enumerate())
