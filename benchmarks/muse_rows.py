"""What is compared with muse-maskgit-pytorch: the rows of the table, their sizes, and the inputs
that both sides are given.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of one row, and of the batch it works on.

    Attributes:
      cond: side of the small images in pixels; 0: there are none.
    """

    image: int = 256
    cond: int = 0
    layers: int = 4
    dim: int = 512
    depth: int = 8
    heads: int = 8
    dim_head: int = 64
    codebook: int = 65536
    tokenizer_dim: int = 256
    batch: int = 4
    text_length: int = 32
    t5: str = "t5-small"
    text_dim: int = 512
    steps: int = 18

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return (self.image // 2**self.layers) ** 2

    @property
    def cond_tokens(self) -> int:
        """Tokens of a small image."""
        return (self.cond // 2**self.layers) ** 2


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
    image=32,
    layers=2,
    dim=32,
    depth=2,
    heads=2,
    dim_head=16,
    codebook=64,
    tokenizer_dim=16,
    batch=2,
    text_length=4,
    steps=3,
)
# The seed's codebook_size=512 and dim=512, depth=8; a tokenizer of dim=256 at 256 pixels.
_SEED = Size(codebook=512)

ROWS = {
    "generate": Row(
        "4 images of 256 pixels from text embeddings in 18 steps, guidance 3, top 10% of the "
        "codes, with the tokenizer",
        _SEED,
        _SMALL,
        units=1,
    ),
    "superres": Row(
        "1 image of 512 pixels (1024 tokens) from the 256 tokens of a small one in 8 steps, "
        "guidance 3, without the tokenizer",
        dataclasses.replace(_SEED, image=512, cond=256, batch=1, steps=8, tokenizer_dim=16),
        dataclasses.replace(_SMALL, cond=16),
        units=1,
    ),
    "train_maskgit": Row(
        "a training step of MaskGit from stored tokens and text embeddings", _SEED, _SMALL
    ),
    "train_tokenizer": Row(
        "a training step of VQGAN without its discriminator",
        dataclasses.replace(_SEED, image=128, tokenizer_dim=128),
        _SMALL,
    ),
    "train_gan": Row(
        "a training step of VQGAN against its discriminator, with gradient penalty",
        dataclasses.replace(_SEED, image=128, tokenizer_dim=64),
        dataclasses.replace(_SMALL, image=64, layers=4, tokenizer_dim=16),
        units=1,
    ),
}


def inputs(size: Size) -> dict[str, np.ndarray]:
    """The batch of a row: "image" uint8 BHWC, "tokens" BN, "cond_ids" BM, "text_embeds" BLD and
    "text_mask" BL.
    """
    draw = np.random.default_rng(0)
    text = (size.batch, size.text_length)

    def codes(count):
        return draw.integers(0, size.codebook, (size.batch, count), dtype=np.int32)

    return {
        "image": draw.integers(0, 256, (size.batch, size.image, size.image, 3), dtype=np.uint8),
        "tokens": codes(size.tokens),
        "cond_ids": codes(size.cond_tokens),
        "text_embeds": draw.normal(size=(*text, size.text_dim)).astype(np.float32),
        "text_mask": np.ones(text, bool),
    }
