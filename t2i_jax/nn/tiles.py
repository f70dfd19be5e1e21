"""Zeros around images and at their ends, and images put together of every second pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax.types import Array


def padded(x_BHWC: Array, rows: int, columns: int) -> Array:
    """With zeros around; without the outermost rows and columns where a number is negative."""
    return widened(x_BHWC, {1: (rows, rows), 2: (columns, columns)})


def widened(t: Array, ends: dict[int, tuple[int, int]]) -> Array:
    """With zeros before and after each of these axes; without what lies there where a number is
    negative.
    """
    around = [(*ends.get(axis, (0, 0)), 0) for axis in range(t.ndim)]
    return jax.lax.pad(t, jnp.zeros((), t.dtype), around)


def filled(t: Array, axes: tuple[int, ...], multiple: int) -> Array:
    """With zeros at the end of each of these axes, up to a multiple of this number."""
    return widened(t, {axis: (0, -t.shape[axis] % multiple) for axis in axes})


def as_pixels(kinds) -> Array:
    """(B, 2H, 2W, C) of its four kinds of pixels, by parity of the row and of the column."""
    return rearrange(list(kinds), "(a b) n h w o -> n (h a) (w b) o", a=2)
