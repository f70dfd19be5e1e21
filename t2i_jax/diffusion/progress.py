"""A progress bar for sampling runs, each of which is one compiled program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from tqdm import tqdm

_bars: list[tqdm] = []  # the innermost one advances


@contextlib.contextmanager
def bar(title: str, steps: int) -> Iterator[None]:
    """Shows a bar of `steps` steps on stderr while the body runs; runs compiled with the callback
    `tell` advance it.
    """
    with tqdm(total=steps, desc=title, unit="step", leave=False) as shown:
        _bars.append(shown)
        try:
            yield
            jax.effects_barrier()
        finally:
            _bars.remove(shown)


def tell() -> None:
    """Advances the bar by one step, as the callback of a compiled run; without a bar nothing
    happens.
    """
    jax.debug.callback(_advance)


def _advance():
    if _bars:
        _bars[-1].update()
