"""Masks of what is kept in a system that works on tokens or latents, each of them many pixels."""

from __future__ import annotations

import numpy as np
from einops import reduce

from t2i_jax.errors import UserError
from t2i_jax.systems import notices
from t2i_jax.words import counted


def whole(keep_PHW: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool (P, *grid): the tokens all of whose pixels are kept; the grid divides the pixels."""
    rows, columns = grid
    return reduce(keep_PHW, "p (r h) (c w) -> p r c", "min", r=rows, c=columns)


def tell(
    known_PRC: np.ndarray,
    keep_PHW: np.ndarray,
    noun: str,
    subject: str,
    none: str,
    *,
    size: tuple[int, int] | None = None,
    beside: str = "inpainted",
) -> None:
    """Writes a line to stderr about how many tokens or latents are kept, and how many kept pixels
    are beside them.

    Args:
      known_PRC, keep_PHW: bool, True for those that are kept, and for the pixels that are to be.
      noun: "token" or "latent". subject: what keeps them. none: begins the refusal, "mask keeps no
        token, and Parti".
      size: (height, width) in pixels of each; None: as the pixels of the mask are divided.
      beside: what becomes of the pixels beside them.

    Raises:
      UserError: of an image none is kept.
    """
    pixels, grid = keep_PHW.shape[1:], known_PRC.shape[1:]
    height, width = size or (length // count for length, count in zip(pixels, grid, strict=True))
    what = f"whole {noun}s, {width}x{height} pixels each"
    if not known_PRC.any((1, 2)).all():
        raise UserError(f"{none} keeps {what}; keep a larger part.")
    rows, columns = (np.arange(n) * few // n for n, few in zip(pixels, grid, strict=True))
    anew = int((keep_PHW & ~known_PRC[:, rows][:, :, columns]).sum())
    told = f"{subject} keeps {what}: {known_PRC.sum()} of {known_PRC.size}"
    notices.tell(
        told + (f"; {counted(anew, 'kept pixel')} beside them are {beside}" if anew else "")
    )
