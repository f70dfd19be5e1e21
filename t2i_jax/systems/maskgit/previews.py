"""Images of a sampling run that still goes on: its compiled loop hands them out step by step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.systems.maskgit.windows import grayed
from t2i_jax.types import Array

Show = Callable[[np.ndarray], Any]
"""A function that is given the uint8 images (B, H, W, C) at the end of a step."""

_shows: list[Show] = []  # the innermost one is told


def check(on_step: Any) -> None:
    """Refuses what can't be called.

    Raises:
      UserError: it is neither None nor a function.
    """
    if on_step is not None and not callable(on_step):
        raise UserError(
            f"on_step={on_step!r} is no function; give one that takes the images of a step."
        )


@contextlib.contextmanager
def shown(on_step: Show | None, count: int) -> Iterator[None]:
    """Calls `on_step` with the first `count` images of each step of the runs in the body that were
    compiled to tell them. What it raises ends the body when its run is done.
    """
    if on_step is None:
        yield
        return
    failed: list[BaseException] = []

    def show(images_BHWC):
        if not failed:
            try:
                on_step(images_BHWC[:count])
            except BaseException as error:  # within the run it would be the runtime's
                failed.append(error)

    _shows.append(show)
    try:
        yield
        jax.effects_barrier()
    finally:
        _shows.remove(show)
    if failed:
        raise failed[0]


def tell(
    model: Any, weights: Any, mask_id: int, grid: tuple[int, int] | None, ids_BN: Array
) -> None:
    """Decodes the tokens of a step within a compiled run and hands the images out, gray where none
    is drawn yet.

    Args:
      model, weights: the image tokenizer. grid: rows and columns of tokens; None: the model's.
    """
    undrawn_BN = ids_BN == mask_id
    images_BHWC = image_tokenizer.pixels(model, weights, jnp.where(undrawn_BN, 0, ids_BN), grid)
    undrawn_BRC = undrawn_BN.reshape(-1, *(grid or model.grid))
    whole = (sharding.constrain(x, *(None,) * x.ndim) for x in (images_BHWC, undrawn_BRC))
    jax.debug.callback(_handed, *whole)


def _handed(images_BHWC, undrawn_BRC):
    if _shows:
        _shows[-1](grayed(np.asarray(images_BHWC), np.asarray(undrawn_BRC)))
