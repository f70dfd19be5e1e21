"""Resizing of feature maps, and the layers of imagen-pytorch that resize with weights."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from t2i_jax.config import one_of
from t2i_jax.nn.conv import POINTWISE, Conv, Dense, conv
from t2i_jax.types import Array

RESIZES = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")


def resize(x_BHWC: Array, size: tuple[int, int], mode: str = "nearest") -> Array:
    """Feature maps (B, *size, C) as PyTorch's `interpolate(mode=mode)` makes them, without
    antialiasing.

    "nearest" takes element floor(i * in / out); "nearest-exact" the one whose centre is nearest;
    "bilinear" and "bicubic" (Keys' kernel, a = -0.75) interpolate between centres; "area" averages
    what lies under an output element.
    """
    one_of("resize_mode", mode, RESIZES)
    for axis, new in ((1, size[0]), (2, size[1])):
        old = x_BHWC.shape[axis]
        if mode.startswith("nearest") and old != new:
            x_BHWC = jnp.take(x_BHWC, _nearest(old, new, mode == "nearest-exact"), axis=axis)
        elif old != new:
            weights = jnp.asarray(_weights(old, new, mode), x_BHWC.dtype)
            x_BHWC = jnp.moveaxis(
                jnp.tensordot(x_BHWC, weights, (axis, 1), precision="highest"), -1, axis
            )
    return x_BHWC


def _nearest(old, new, exact):
    """The input element of each of `new` output elements, in the float32 of PyTorch: where i * old
    is a multiple of new, rounding may fall below the element that exact numbers give.
    """
    scale = np.float64(np.float32(old / new))
    if exact:
        centres = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
        found = np.floor(np.maximum(centres, 0) + np.float32(0.5))
    else:
        found = np.floor((np.arange(new) * scale).astype(np.float32))
    return np.minimum(found, old - 1).astype(int)


def _weights(old, new, mode):
    """Interpolation weights (new, old): the share of each of `old` input elements in each of `new`
    output elements.
    """
    weights = np.zeros((new, old))
    for i in range(new):
        if mode == "area":
            start, end = i * old // new, -(-(i + 1) * old // new)
            weights[i, start:end] = 1 / (end - start)
            continue
        centre = (i + 0.5) * old / new - 0.5
        centre = max(centre, 0.0) if mode == "bilinear" else centre
        first, reach = math.floor(centre), 1 if mode == "bilinear" else 2
        for j in range(first + 1 - reach, first + 1 + reach):  # an edge is repeated beyond itself
            weights[i, min(max(j, 0), old - 1)] += _kernel(abs(centre - j), mode)
    return weights


def _kernel(distance, mode):
    if mode == "bilinear":
        return 1 - distance
    if distance <= 1:
        return 1.25 * distance**3 - 2.25 * distance**2 + 1
    return -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)


class CrossEmbed(nn.Module):
    """Convolutions of several kernel sizes side by side (Wang et al. 2021, CrossFormer), small
    kernels first.

    The smallest kernel gives a half of the channels, the next a quarter and so on; the largest
    gives the rest.

    Attributes:
      features: output channels. kernels: sides of the windows, each even or odd as the stride is.
    """

    features: int
    kernels: tuple[int, ...]
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, H / stride, W / stride, features)."""
        widths = [self.features // 2**i for i in range(1, len(self.kernels))]
        widths.append(self.features - sum(widths))
        parts = [
            conv(width, kernel, f"conv_{i}", stride=self.stride, dtype=self.dtype)(x_BHWC)
            for i, (kernel, width) in enumerate(zip(sorted(self.kernels), widths, strict=True))
        ]
        return jnp.concatenate(parts, axis=-1)


class Downsample(nn.Module):
    """Downsampling by 2: each 2x2 block becomes channels (SP-conv, Sunkara and Luo 2022), then a
    linear map.

    The block's four elements of one input channel are neighbours among the channels, as in PyTorch.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, H / 2, W / 2, features)."""
        blocks = rearrange(x_BHWC, "b (h i) (w j) c -> b h w (c i j)", i=2, j=2)
        return Dense(self.features, POINTWISE, dtype=self.dtype, name="conv")(blocks)


class PixelShuffle(nn.Module):
    """Upsampling by 2: a linear map and SiLU give the four elements of each block; at first a
    nearest enlargement.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, 2 H, 2 W, features)."""
        y = Dense(4 * self.features, POINTWISE, dtype=self.dtype, init=_same_in_block, name="conv")(
            x_BHWC
        )
        return rearrange(nn.silu(y), "b h w (c i j) -> b (h i) (w j) c", i=2, j=2)


def _same_in_block(key, shape, dtype=jnp.float32):
    """He's uniform weights, the same for the four elements of a block (Aitken et al. 2017)."""
    bound = math.sqrt(6 / shape[0])
    return jnp.repeat(
        jax.random.uniform(key, (shape[0], shape[1] // 4), dtype, -bound, bound), 4, axis=1
    )


class Upsample(nn.Module):
    """Upsampling by 2: nearest, then a 3x3 convolution."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, 2 H, 2 W, features)."""
        _, H, W, _ = x_BHWC.shape
        return conv(self.features, 3, "conv", dtype=self.dtype)(resize(x_BHWC, (2 * H, 2 * W)))


class Widen(nn.Module):
    """Another number of channels at the same size: the sum of a 3x3 convolution and a linear
    map.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, H, W, features)."""
        near = conv(self.features, 3, "conv3", dtype=self.dtype)(x_BHWC)
        return near + Dense(self.features, POINTWISE, dtype=self.dtype, name="conv1")(x_BHWC)


def zero_conv(features: int, kernel: int, name: str, dtype: str = "float32") -> Conv:
    """A convolution of the same size whose weights start at zero: the network's first output is 0
    everywhere.
    """
    zeros = nn.initializers.zeros
    return Conv(features, kernel, 1, kernel // 2, dtype=dtype, init=zeros, name=name)
