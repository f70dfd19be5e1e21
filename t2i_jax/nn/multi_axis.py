"""Multi-axis attention of a grid of tokens: half of the heads see the block around a token, half of
them see the grid of tokens that have its place in each of the blocks.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from einops import rearrange

from t2i_jax.errors import UserError
from t2i_jax.types import Array


@dataclasses.dataclass(frozen=True)
class MultiAxis:
    """The two ways to part a grid of tokens into groups that attend among themselves (Zhao et al.
    2021, arXiv 2106.07631, section 3.1; MaxViT, Tu et al. 2022, has them one after the other).

    A token meets block^2 + (side / block)^2 keys in place of side^2, each in half of the heads; two
    layers connect any two tokens. With a block of sqrt(side) both groups have as many tokens.

    Attributes:
      side: tokens per row and per column of the grid. block: tokens per side of a block; it divides
        `side`.
    """

    side: int
    block: int

    def __post_init__(self):
        if self.block < 1 or self.side % self.block:
            fits = [n for n in range(1, self.side + 1) if self.side % n == 0]
            near = min(fits, key=lambda n: (abs(n - self.block), n))
            raise UserError(
                f"multi_axis={self.block} is no part of fmap_size={self.side}; try {near}."
            )

    def parted(self, x_BNHD: Array) -> tuple[Array, Array]:
        """(blocks of the first half of the heads, grids of the second): (B G, N / G, H / 2, D),
        where G is the number of groups of each kind.
        """
        within, across = x_BNHD[:, :, : x_BNHD.shape[2] // 2], x_BNHD[:, :, x_BNHD.shape[2] // 2 :]
        return (
            rearrange(within, "b (r i c j) h d -> (b r c) (i j) h d", **self._sizes()),
            rearrange(across, "b (r i c j) h d -> (b i j) (r c) h d", **self._sizes()),
        )

    def joined(self, blocks_GNHD: Array, grids_GNHD: Array) -> Array:
        """(B, N, H, D), the inverse of `parted`."""
        within = rearrange(blocks_GNHD, "(b r c) (i j) h d -> b (r i c j) h d", **self._sizes())
        across = rearrange(grids_GNHD, "(b i j) (r c) h d -> b (r i c j) h d", **self._sizes())
        return jnp.concatenate([within, across], axis=2)

    def _sizes(self):
        blocks = self.side // self.block
        return {"r": blocks, "c": blocks, "i": self.block, "j": self.block}
