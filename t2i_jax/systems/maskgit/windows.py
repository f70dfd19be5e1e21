"""Images larger or wider than those of training: windows of the trained grid slide over a larger
one, each given the tokens that those before it have drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.types import Array, Key
from t2i_jax.values import shown

# (keys_B, cond_BM, given_BN, known_BN) -> tokens of one window (B, N)
Draw = Callable[[Key, Array | None, Array, Array], Array]
_UNDRAWN = 127  # gray level of pixels whose tokens are not drawn yet


@dataclasses.dataclass(frozen=True)
class Windows:
    """The places of the windows over an image.

    Attributes:
      grid: rows and columns of tokens of the whole image. side: of a window. starts: row and column
        of the first token of each window, row by row.
      small: (side, starts) of the same windows over the tokens of a smaller image that is
        conditioned on, and small_grid: its rows and columns; None: there is none.
    """

    grid: tuple[int, int]
    side: int
    starts: tuple[tuple[int, int], ...]
    small_grid: tuple[int, int] | None = None
    small: tuple[int, tuple[tuple[int, int], ...]] | None = None


def unit_of(side: int, small_side: int | None) -> int:
    """Tokens by whose multiples a window moves, so that it lies over whole tokens of the smaller
    image.
    """
    return 1 if small_side is None else side // math.gcd(side, small_side)


def windows_over(
    grid: tuple[int, int], side: int, overlap: float, small_side: int | None = None
) -> Windows:
    """Windows that cover a grid, evenly spaced, each sharing at least the share `overlap` of its
    side with the one before it (as far as whole tokens allow).

    Args:
      grid: rows and columns, at least `side` and multiples of `unit_of`. small_side: side of the
        trained grid of the smaller images; None: there are none.
    """
    unit = unit_of(side, small_side)
    rows, columns = (_starts(length // unit, side // unit, overlap) for length in grid)
    places = [(row, column) for row in rows for column in columns]
    starts = tuple((row * unit, column * unit) for row, column in places)
    if small_side is None:
        return Windows(grid, side, starts)
    small_unit = small_side * unit // side
    small_grid = (grid[0] // unit * small_unit, grid[1] // unit * small_unit)
    below = tuple((row * small_unit, column * small_unit) for row, column in places)
    return Windows(grid, side, starts, small_grid, (small_side, below))


def _starts(length, side, overlap):
    """Places of windows over one axis, the first at its start and the last at its end."""
    stride = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / stride) + 1
    return [round(place) for place in np.linspace(0, length - side, count)]


def slide(
    windows: Windows,
    draw: Draw,
    keys_B: Key,
    mask_id: int,
    *,
    cond_BM: Array | None,
    given_BN: Array | None,
    known_BN: Array | None,
    tell: Callable[[Array], None] | None = None,
) -> tuple[Array, Array]:
    """Tokens (B, N) of the whole grid, and those after every window (windows, B, N), `mask_id`
    where none is drawn yet: one loop over the windows.

    Args:
      draw: tokens of a window. Its key is that of the row and the window; its known tokens are
        those of `known_BN` and of the windows before it.
      cond_BM: tokens of the whole smaller image. given_BN, known_BN: of the whole grid; None: none.
      tell: called within the compiled loop with the tokens after every window; None: nothing.
    """
    batch, (side, starts) = keys_B.shape[0], (windows.side, windows.starts)
    whole = (batch, *windows.grid)
    given_BRC = _grid(given_BN, whole, mask_id, jnp.int32)
    known_BRC = _grid(known_BN, whole, False, jnp.bool_)
    small_side, small_starts = windows.small or (0, starts)
    small_BRC = None if cond_BM is None else cond_BM.reshape(batch, *(windows.small_grid or ()))

    def step(carry, now):
        ids_BRC, known_BRC = carry
        number, start, below = now
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
        cond = None if small_BRC is None else _part(small_BRC, below, small_side)
        ids_BN = draw(keys, cond, _part(ids_BRC, start, side), _part(known_BRC, start, side))
        ids_BRC = _put(ids_BRC, ids_BN.reshape(batch, side, side), start)
        known_BRC = _put(known_BRC, jnp.ones((batch, side, side), bool), start)
        seen_BRC = ids_BRC if given_BN is not None else jnp.where(known_BRC, ids_BRC, mask_id)
        if tell is not None:
            tell(seen_BRC.reshape(batch, -1))
        return (ids_BRC, known_BRC), seen_BRC.reshape(batch, -1)

    numbers = (jnp.arange(len(starts)), jnp.asarray(starts), jnp.asarray(small_starts))
    (ids_BRC, _), trace = jax.lax.scan(step, (given_BRC, known_BRC), numbers)
    return ids_BRC.reshape(batch, -1), trace


def _grid(x_BN, shape, nothing, dtype):
    return jnp.full(shape, nothing, dtype) if x_BN is None else x_BN.reshape(shape).astype(dtype)


def _part(x_BRC, start, side):
    size = (x_BRC.shape[0], side, side)
    part = jax.lax.dynamic_slice(x_BRC, (jnp.int32(0), start[0], start[1]), size)
    return part.reshape(x_BRC.shape[0], -1)


def _put(x_BRC, part_BRC, start):
    return jax.lax.dynamic_update_slice(x_BRC, part_BRC, (jnp.int32(0), start[0], start[1]))


def grayed(images_BHWC: np.ndarray, undrawn_BRC: np.ndarray) -> np.ndarray:
    """uint8 images, gray where their tokens are not drawn yet."""
    sides = [images_BHWC.shape[axis] // undrawn_BRC.shape[axis] for axis in (1, 2)]
    undrawn_BHW = undrawn_BRC.repeat(sides[0], axis=1).repeat(sides[1], axis=2)
    return np.where(undrawn_BHW[..., None], np.uint8(_UNDRAWN), images_BHWC)


def check_size(size: tuple[int, int], least: int, multiple: int) -> None:
    """Refuses a size (height, width) that windows can't cover.

    Args:
      least: side of the trained images. multiple: pixels that both sides are multiples of.
    """
    height, width = size
    if height % multiple or width % multiple:
        fits = tuple(max(least, -(-length // multiple) * multiple) for length in size)
        raise UserError(
            f"image_size={size}: height and width are not both multiples of {multiple} pixels; "
            f"try {fits}."
        )
    if min(size) < least:
        fits = (max(height, least), max(width, least))
        raise UserError(
            f"image_size={size} is smaller than the {least}x{least} pixels of training; try {fits}."
        )


def size_of(image_size: Any) -> tuple[int, int] | None:
    """(height, width) of what a user gives as a size; one number is both.

    Raises:
      UserError: something else.
    """
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(0 < side <= _MOST for side in sides):
        raise UserError(
            f"image_size={shown(image_size)} is no size in pixels; give one side, or (height, "
            f"width), each from 1 to {_MOST}."
        )
    return sides


_MOST = 65_536  # longest side in pixels


def windows_of(options: Any, network: Any, own: Any, small: Any) -> Windows | None:
    """The windows over images of `options.image_size`; None for the size of training.

    Args:
      options: `MaskGitOptions`. network: the transformer. own, small: the tokenizers of the images
        and of the smaller ones that are conditioned on; None: there are none.

    Raises:
      UserError: a size that windows can't cover, or a tokenizer of one size.
    """
    size = size_of(options.image_size)
    if size in (None, (own.image_size, own.image_size)):
        return None
    below = network.cond_fmap_size
    check_size(size, own.image_size, own.patch_size * unit_of(network.fmap_size, below))
    grid = (size[0] // own.patch_size, size[1] // own.patch_size)
    windows = windows_over(grid, network.fmap_size, options.overlap, below)
    sizes = [(own, size)]
    if small is not None and windows.small_grid is not None:
        rows, columns = windows.small_grid
        sizes.append((small, (rows * small.patch_size, columns * small.patch_size)))
    for tokenizer, wanted in sizes:
        if not image_tokenizer.runs_at(tokenizer, wanted):
            raise UserError(
                f"image_size={options.image_size} is another size than the tokenizer's "
                f"image_size={tokenizer.image_size}, and its weights are those of one size; "
                "leave it out, or train with a convolutional tokenizer."
            )
    return windows
