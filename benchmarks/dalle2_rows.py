"""What is compared with x-clip and dalle2-pytorch: the rows of the table, their sizes, and the
inputs that both sides are given. Prior and decoder are given embeddings; CLIP has a row of its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from parti_rows import Row


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of one row, and of the batch it works on: those of the package's page, with smaller
    images and texts.

    Attributes:
      dim: width of CLIP, of its embeddings and of the prior. depth: layers of each of these
        networks. unet: width of the decoder's U-Net.
    """

    image: int = 64
    patch: int = 8
    dim: int = 512
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    codes: int = 10000
    text_length: int = 64
    unet: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    batch: int = 8
    timesteps: int = 100
    ddim: int = 16


_SMALL = Size(
    image=16, patch=8, dim=16, depth=1, heads=2, dim_head=8, codes=40, text_length=8, unet=8,
    dim_mults=(1, 2), batch=2, timesteps=4, ddim=2,
)  # fmt: skip
_FEW = dataclasses.replace(Size(), batch=2)  # images that a decoder makes at a time

ROWS = {
    "train_clip": Row("a training step of CLIP", Size(), _SMALL),
    "train_prior": Row(
        "a training step of the prior from stored embeddings",
        dataclasses.replace(Size(), batch=32),
        _SMALL,
    ),
    "sample_prior": Row("8 embeddings by DDPM in 100 steps, guidance 2", Size(), _SMALL, units=1),
    "train_decoder": Row(
        "a training step of a decoder of 64 pixels from stored embeddings",
        dataclasses.replace(Size(), batch=4),
        _SMALL,
    ),
    "decoder_ddpm": Row(
        "2 images by DDPM in 20 steps, guidance 2",
        dataclasses.replace(_FEW, timesteps=20),
        _SMALL,
        units=1,
    ),
    "decoder_ddim": Row("2 images by DDIM in 16 steps, guidance 2", _FEW, _SMALL, units=1),
}


def clip(size: Size) -> dict:
    """The arguments of CLIP."""
    return dict(
        dim_text=size.dim, dim_image=size.dim, dim_latent=size.dim, num_text_tokens=size.codes,
        text_enc_depth=size.depth, text_seq_len=size.text_length, text_heads=size.heads,
        visual_enc_depth=size.depth, visual_image_size=size.image, visual_patch_size=size.patch,
        visual_heads=size.heads, visual_patch_dropout=0.0,
    )  # fmt: skip


def prior(size: Size) -> dict:
    """The arguments of the prior's network."""
    return dict(
        dim=size.dim, depth=size.depth, dim_head=size.dim_head, heads=size.heads,
        max_text_len=size.text_length,
    )  # fmt: skip


def unet(size: Size) -> dict:
    """The arguments of the decoder's U-Net."""
    return dict(
        dim=size.unet, image_embed_dim=size.dim, cond_dim=size.unet, dim_mults=size.dim_mults,
        num_resnet_blocks=1, resnet_groups=4, attn_heads=4, attn_dim_head=32,
    )  # fmt: skip


def inputs(size: Size) -> dict[str, np.ndarray]:
    """The batch of a row: "image" uint8 BHWC, "text" BL, "image_embeds" and "caption_embeds" BD of
    length 1, "text_embeds" BLD and "text_mask" BL.
    """
    draw = np.random.default_rng(0)

    def unit():
        x = draw.normal(size=(size.batch, size.dim)).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    text = (size.batch, size.text_length)
    return {
        "image": draw.integers(0, 256, (size.batch, size.image, size.image, 3), dtype=np.uint8),
        "text": draw.integers(1, size.codes, text).astype(np.int32),
        "text_mask": np.ones(text, bool),
        "image_embeds": unit(),
        "caption_embeds": unit(),
        "text_embeds": draw.normal(size=(*text, size.dim)).astype(np.float32),
    }
