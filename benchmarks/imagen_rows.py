"""What is compared with imagen-pytorch: the rows of the table, their sizes, and the inputs that
both sides are given.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from parti_rows import Row


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of one row, and of the batch it works on."""

    images: tuple[int, int] = (32, 64)
    dim: int = 32
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    num_resnet_blocks: int = 2
    batch: int = 4
    text_length: int = 32
    text_dim: int = 768
    ddpm_steps: int = 20
    edm_steps: int = 10


_SMALL = Size(
    images=(8, 16),
    dim=8,
    dim_mults=(1, 2),
    num_resnet_blocks=1,
    batch=2,
    text_length=4,
    text_dim=16,
    ddpm_steps=2,
    edm_steps=2,
)

ROWS = {
    "train_base": Row("a training step of the first stage, DDPM", Size(), _SMALL),
    "train_larger": Row("a training step of the second stage, DDPM", Size(), _SMALL),
    "sample_ddpm": Row(
        "4 images through both stages, 20 steps each, guidance 3", Size(), _SMALL, units=1
    ),
    "sample_edm": Row(
        "4 images through both stages, 10 Heun steps each, guidance 3", Size(), _SMALL, units=1
    ),
}


def unets(size: Size) -> list[dict]:
    """The arguments of both U-Nets: attention below full size in the first stage, at the bottom
    alone in the second.
    """
    common = dict(dim=size.dim, dim_mults=size.dim_mults, num_resnet_blocks=size.num_resnet_blocks,
                  text_embed_dim=size.text_dim)  # fmt: skip
    levels = range(len(size.dim_mults))
    below, bottom = tuple(i > 0 for i in levels), tuple(i == levels[-1] for i in levels)
    return [
        dict(common, layer_attns=below, layer_cross_attns=below),
        dict(common, layer_attns=bottom, layer_cross_attns=bottom, lowres_cond=True),
    ]


def inputs(size: Size) -> dict[str, np.ndarray]:
    """The batch of a row: "image" uint8 BHWC, "text_embeds" BLD and "text_mask" BL."""
    draw = np.random.default_rng(0)
    side, text = size.images[-1], (size.batch, size.text_length)
    return {
        "image": draw.integers(0, 256, (size.batch, side, side, 3), dtype=np.uint8),
        "text_embeds": draw.normal(size=(*text, size.text_dim)).astype(np.float32),
        "text_mask": np.ones(text, bool),
    }
