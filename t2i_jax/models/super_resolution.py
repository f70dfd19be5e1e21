"""Super-resolution after Parti: a convolutional network of wide residual blocks (WDSR, Yu et al.
2018).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.nn import limits
from t2i_jax.nn.conv import conv, unpatchify
from t2i_jax.pixels import SIGNED
from t2i_jax.types import Array
from t2i_jax.values import Signed


class WideBlock(nn.Module):
    """x + conv(relu(conv(x))), the middle `expansion` times as wide (WDSR-A), scaled down at the
    start of training.
    """

    channels: int
    expansion: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The feature map, same shape."""
        wide = nn.relu(conv(self.channels * self.expansion, 3, "wide", dtype=self.dtype)(x_BHWC))
        return x_BHWC + 0.1 * conv(self.channels, 3, "narrow", dtype=self.dtype)(wide)


class SuperResolution(nn.Module):
    """Images 2 or 4 times as large (as in the Parti paper): 12 wide residual blocks of 128 channels
    per doubling.

        SuperResolution(scale=2)    # 14 million parameters, 256 -> 512 in the paper
        SuperResolution(scale=4)    # 28 million, 256 -> 1024

    Each doubling adds what it learnt to the bicubically enlarged image. Any size goes in.

    Attributes:
      scale: 2 or 4. blocks, channels, expansion: sizes of one doubling. image_channels: 1 or 3.
      pixel_range: of its float images. dtype: of the computation; the image is float32.
    """

    scale: int = 2
    blocks: int = 12
    channels: int = 128
    expansion: int = 4
    image_channels: int = 3
    pixel_range: tuple[Signed, Signed] = SIGNED
    dtype: str = "float32"

    def __post_init__(self):
        limits.check(self)
        if self.scale not in (2, 4):
            raise UserError(f"scale={self.scale} is neither 2 nor 4; give one of them.")
        for field in ("blocks", "channels", "expansion", "image_channels"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not positive; give 1 or more.")
        super().__post_init__()

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        """Float32 images (B, scale * H, scale * W, C) from float images of `pixel_range`; nothing
        is clipped.
        """
        image = image_BHWC.astype(jnp.float32)
        for stage in range(self.scale // 2):
            x = conv(self.channels, 3, f"stem_{stage}", dtype=self.dtype)(image)
            for i in range(self.blocks):
                x = WideBlock(self.channels, self.expansion, self.dtype, name=f"block_{stage}_{i}")(
                    x
                )
            detail = conv(4 * self.image_channels, 3, f"to_pixels_{stage}", dtype=self.dtype)(x)
            image = enlarged(image) + 0.1 * pixel_shuffle(detail.astype(jnp.float32))
        return image


def enlarged(image_BHWC: Array) -> Array:
    """Twice the size, bicubic."""
    batch, height, width, channels = image_BHWC.shape
    return jax.image.resize(image_BHWC, (batch, 2 * height, 2 * width, channels), "cubic")


def pixel_shuffle(x_BHWC: Array) -> Array:
    """Four channels as a 2 x 2 square of pixels: (B, 2H, 2W, C / 4)."""
    return unpatchify(x_BHWC, 2)
