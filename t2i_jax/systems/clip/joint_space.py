"""Vectors of CLIP's joint space, as a user gives them."""

from __future__ import annotations

from typing import Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays
from t2i_jax.systems.notices import tell

_SHORT, _LONG = 0.5, 2.0  # of a prior that is not held to the sphere, lengths are about 1


def numbers(name: str, given: Any, shape: str) -> np.ndarray:
    """float32 of real, finite numbers.

    Args:
      shape: what is asked for, "(P, 512)".

    Raises:
      UserError: something else.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused
            array = arrays.given(given).astype(np.float32)
    except arrays.NoArray as error:
        raise UserError(f"{name} are no numbers (what is given {error}); give {shape}.") from error
    if array.size and (unfit := arrays.not_finite(array)):
        raise UserError(f"{name} have {unfit}; compute them again.")
    return array


def vectors(name: str, given: Any, width: int) -> np.ndarray:
    """(P, D) float32 of embeddings of CLIP that are given, (D,) for one.

    They have length 1, as CLIP's; a line on stderr tells of lengths that are far from it.

    Raises:
      UserError: no numbers, another shape, or zeros, which have no direction.
    """
    shape = f"(P, {width})"
    embeds = numbers(name, given, shape)
    embeds = embeds[None] if embeds.ndim == 1 else embeds
    if embeds.ndim != 2 or embeds.shape[1] != width or not len(embeds):
        raise UserError(f"{name} have shape {np.shape(given)}; give {shape}.")
    lengths = np.linalg.norm(embeds.astype(np.float64), axis=1)
    if not lengths.all():
        row = int(lengths.argmin())
        raise UserError(f"{name}[{row}] is zeros, and CLIP's have length 1; compute it again.")
    low, high = lengths.min(), lengths.max()
    if low < _SHORT or high > _LONG:
        tell(f"{name} have lengths from {low:.3g} to {high:.3g}, and CLIP's have 1; divide by them")
    return embeds
