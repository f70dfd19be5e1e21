"""The encoder and the decoder of the VQGAN of taming-transformers (Esser et al. 2021, arXiv
2012.09841): residual blocks and attention at falling and rising resolutions.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import reduce

from t2i_jax.nn.conv import POINTWISE, Conv, Dense, conv
from t2i_jax.nn.fused_attention import attend
from t2i_jax.nn.group_norm import group_norm
from t2i_jax.nn.resample import Upsample
from t2i_jax.nn.transformer import REMAT
from t2i_jax.sharding import constrain
from t2i_jax.types import Array


class ResnetBlock(nn.Module):
    """Twice group norm, swish and a 3x3 convolution, added to the input; where the width changes
    that goes through a linear map.

    Attributes:
      features: output channels. biased: whether the layers have biases.
      shortcut_of_output: the linear map reads the block's own output instead, as in MaskGIT's code.
    """

    features: int
    groups: int
    biased: bool = True
    shortcut_of_output: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, H, W, features)."""
        y = x_BHWC
        for i in range(2):
            y = _activated(y, self.groups, f"norm_{i}", self.dtype)
            y = conv(self.features, 3, f"conv_{i}", bias=self.biased, dtype=self.dtype)(y)
        if x_BHWC.shape[-1] != self.features:
            shortcut = Dense(
                self.features, POINTWISE, self.biased, dtype=self.dtype, name="shortcut"
            )
            x_BHWC = shortcut(y if self.shortcut_of_output else x_BHWC)
        return constrain(x_BHWC + y, "batch", None, None, None)


class Attention(nn.Module):
    """Self-attention of one head over all places, added to the input."""

    groups: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The feature map, same shape."""
        B, H, W, C = x_BHWC.shape
        y = group_norm(self.groups, "norm", self.dtype, epsilon=1e-6)(x_BHWC)
        q, k, v = (
            Dense(C, POINTWISE, dtype=self.dtype, name=name)(y).reshape(B, H * W, 1, C)
            for name in "qkv"
        )
        out = Dense(C, POINTWISE, dtype=self.dtype, name="out")(attend(q, k, v))
        return constrain(x_BHWC + out.reshape(x_BHWC.shape), "batch", None, None, None)


class _Half(nn.Module):
    """The base of `Encoder` and `Decoder`.

    Attributes:
      features: output channels of the encoder; unused in the decoder. widths: of each level, the
        largest feature maps first. blocks: residual blocks of each level. attention: levels whose
        blocks are followed by attention.
    """

    features: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    middle_attention: bool
    groups: int
    biased: bool
    shortcut_of_output: bool
    remat: str
    dtype: str

    def _level(self, x, i):
        for j in range(self.blocks):
            x = self._block(self.widths[i], f"block_{i}_{j}")(x)
            if i in self.attention:
                x = Attention(self.groups, self.dtype, name=f"attention_{i}_{j}")(x)
        return x

    def _middle(self, x):
        x = self._block(self.widths[-1], "middle_0")(x)
        if self.middle_attention:
            x = Attention(self.groups, self.dtype, name="middle_attention")(x)
        return self._block(self.widths[-1], "middle_1")(x)

    def _block(self, features, name):
        block: Any = ResnetBlock
        if self.remat != "none":
            block = nn.remat(ResnetBlock, policy=REMAT[self.remat])
        return block(
            features, self.groups, self.biased, self.shortcut_of_output, self.dtype, name=name
        )


class Encoder(_Half):
    """A convolution, per level residual blocks and a halving of the sides (not after the last), the
    middle, and a last convolution.

    Attributes:
      base: width of the first convolution. last_kernel: side of the window of the last one.
        downsampling: "conv", stride 2 with zeros on the right and below; or "mean" of 2x2 places.
    """

    base: int
    last_kernel: int
    downsampling: str

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        """The feature map (B, rows, columns, features)."""
        x = conv(self.base, 3, "first", bias=self.biased, dtype=self.dtype)(image_BHWC)
        for i in range(len(self.widths)):
            x = self._level(x, i)
            if i < len(self.widths) - 1:
                x = self._halved(x, i)
        x = _activated(self._middle(x), self.groups, "norm", self.dtype)
        return conv(self.features, self.last_kernel, "last", dtype=self.dtype)(x)

    def _halved(self, x, i):
        if self.downsampling == "mean":
            return reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return Conv(x.shape[-1], 3, 2, 0, dtype=self.dtype, name=f"down_{i}")(x)


class Decoder(_Half):
    """A convolution, the middle, and the levels backwards: residual blocks, then nearest
    enlargement and a convolution (not after the first level).
    """

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The normalised and activated feature map (B, image height, image width, widths[0])."""
        x = self._middle(conv(self.widths[-1], 3, "first", dtype=self.dtype)(x_BHWC))
        for i in reversed(range(len(self.widths))):
            x = self._level(x, i)
            if i:
                x = Upsample(self.widths[i], self.dtype, name=f"up_{i}")(x)
        return _activated(x, self.groups, "norm", self.dtype)


def _activated(x, groups, name, dtype):
    return nn.silu(group_norm(groups, name, dtype, epsilon=1e-6)(x))
