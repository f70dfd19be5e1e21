"""What is compared with parti-pytorch: the rows of the table, their sizes, and the inputs that both
sides are given.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of one row, and of the batch it works on."""

    image: int = 256
    patch: int = 16
    dim: int = 512
    depth: int = 8
    heads: int = 8
    dim_head: int = 64
    codebook: int = 8192
    tokenizer_layers: int = 4
    batch: int = 4
    text_length: int = 32
    t5: str = "t5-large"
    text_dim: int = 1024


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      what: one unit of its work, in words.
      size: as measured. small: for a quick look and the tests.
      units: units of work in the process whose memory is measured; on our side one more comes
        before them.
    """

    what: str
    size: Size
    small: Size
    units: int = 3


_SMALL = Size(
    image=64,
    patch=16,
    dim=32,
    depth=2,
    heads=2,
    dim_head=16,
    codebook=64,
    tokenizer_layers=1,
    batch=2,
    text_length=4,
    t5="t5-small",
    text_dim=512,
)

ROWS = {
    "generate": Row(
        "4 images from text embeddings, guidance 3, top 10 % of the codes", Size(), _SMALL, units=1
    ),
    "train_parti": Row(
        "a training step of Parti from stored tokens and text embeddings", Size(), _SMALL
    ),
    "train_tokenizer": Row(
        "a training step of ViT-VQGAN without its discriminator", Size(), _SMALL
    ),
    "train_gan": Row(
        "a training step of ViT-VQGAN against its discriminator, with gradient penalty",
        Size(image=128, dim=256, tokenizer_layers=3),
        _SMALL,
        units=1,
    ),
    "encode": Row("the tokens of 4 images", Size(), _SMALL),
}


def inputs(size: Size) -> dict[str, np.ndarray]:
    """The batch of a row: "image" uint8 BHWC, "tokens" BN, "text_embeds" BLD and "text_mask" BL."""
    draw = np.random.default_rng(0)
    text = (size.batch, size.text_length)
    return {
        "image": draw.integers(0, 256, (size.batch, size.image, size.image, 3), dtype=np.uint8),
        "tokens": draw.integers(
            0, size.codebook, (size.batch, (size.image // size.patch) ** 2), dtype=np.int32
        ),
        "text_embeds": draw.normal(size=(*text, size.text_dim)).astype(np.float32),
        "text_mask": np.ones(text, bool),
    }
