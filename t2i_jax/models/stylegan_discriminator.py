"""The residual discriminator of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), which ViT-VQGAN
trains against.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.nn import limits
from t2i_jax.nn.conv import boxed
from t2i_jax.nn.convolution import convolve
from t2i_jax.nn.parameter import parameter
from t2i_jax.types import Array

_BLUR = (1.0, 3.0, 3.0, 1.0)
# Widths by the side of the feature map, for `width` 1; 512 below.
_WIDTHS = {64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


class StyleDiscriminator(nn.Module):
    """A discriminator with one logit per image, high for real ones.

    Equalised learning rates (unit normal weights, scaled at run time), blurred down-sampling,
    residual blocks scaled by 1/sqrt(2), the standard deviation over groups of images as one more
    channel.

    Attributes:
      image_size: side in pixels, a power of 2 of at least 8. channels: of the images.
      width: multiplies the widths of feature maps of 64 pixels and more (2 in the published
        networks).
      max_width: no feature map is wider; 512 in the published networks, less for toys.
      group: most images over which a standard deviation is taken; the largest divisor of the batch
        up to it is used.
      dtype: of the computation.
    """

    image_size: int
    channels: int = 3
    width: int = 2
    max_width: int = 512
    group: int = 4
    dtype: str = "float32"

    def __post_init__(self):
        limits.check(self)
        if self.image_size < 8 or self.image_size & (self.image_size - 1):
            fits = 2 ** max(round(math.log2(max(self.image_size, 8))), 3)
            raise UserError(
                f"image_size={self.image_size} is no power of 2 of at least 8; try {fits}."
            )
        super().__post_init__()

    def check(self, image_size: int) -> None:
        """Refuses a tokenizer of another image size."""
        if image_size != self.image_size:
            raise UserError(
                f"discriminator.image_size={self.image_size} is not the model's; set it to "
                f"{image_size}."
            )

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        """Logits (B,) of float images."""
        x = self._conv(self._width(self.image_size), 1, "from_rgb")(image_BHWC.astype(self.dtype))
        size = self.image_size
        while size > 4:
            wide = self._width(size // 2)
            y = self._conv(x.shape[-1], 3, f"block_{size}_conv_0")(x)
            y = self._conv(wide, 3, f"block_{size}_conv_1", down=True)(y)
            skip = self._conv(wide, 1, f"block_{size}_skip", down=True, bias=False)(x)
            x, size = (y + skip) / math.sqrt(2), size // 2
        x = jnp.concatenate([x, _deviation(x, self.group)], axis=-1)
        x = self._conv(self._width(4), 3, "last_conv")(x)
        x = _EqualDense(self._width(4), True, self.dtype, name="last_dense")(
            x.reshape(x.shape[0], -1)
        )
        return _EqualDense(1, False, self.dtype, name="to_logits")(x)[:, 0].astype(jnp.float32)

    def _width(self, size):
        return min(_WIDTHS.get(size, 512 // self.width) * self.width, self.max_width)

    def _conv(self, features, kernel, name, down=False, bias=True):
        return _EqualConv(features, kernel, down, bias, self.dtype, name=name)


class _EqualConv(nn.Module):
    """Convolution with an equalised learning rate; `bias` means bias and scaled leaky ReLU, `down`
    halves the map's side.
    """

    features: int
    kernel: int
    down: bool
    bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        fan_in = self.kernel**2 * x_BHWC.shape[-1]
        shape = (self.kernel, self.kernel, x_BHWC.shape[-1], self.features)
        init = boxed(nn.initializers.normal(1.0), None, None, "conv_in", "conv_out")
        kernel = parameter(self, "kernel", init, shape, jnp.float32).astype(self.dtype) / math.sqrt(
            fan_in
        )
        pad = self.kernel // 2
        if self.down:
            # Padded so that the strided convolution ends at half the size.
            x_BHWC, pad = _blur(x_BHWC, 1 + pad), 0
        y = convolve(x_BHWC, kernel, 2 if self.down else 1, pad)
        return _activated(self, y, self.features) if self.bias else y


class _EqualDense(nn.Module):
    """Linear layer with an equalised learning rate; `activate`: followed by the scaled leaky
    ReLU.
    """

    features: int
    activate: bool
    dtype: str

    @nn.compact
    def __call__(self, x_BC: Array) -> Array:
        init = boxed(nn.initializers.normal(1.0), "conv_in", "conv_out")
        kernel = parameter(
            self, "kernel", init, (x_BC.shape[-1], self.features), jnp.float32
        ).astype(self.dtype)
        y = x_BC @ (kernel / math.sqrt(x_BC.shape[-1]))
        if self.activate:
            return _activated(self, y, self.features)
        return y + parameter(
            self, "bias", boxed(nn.initializers.zeros, None), (self.features,)
        ).astype(y.dtype)


def _activated(module, y, features):
    bias = parameter(module, "bias", boxed(nn.initializers.zeros, "conv_out"), (features,)).astype(
        y.dtype
    )
    return nn.leaky_relu(y + bias, 0.2) * math.sqrt(2)


def _blur(x_BHWC, pad):
    """A separable low-pass filter, as shifted sums; the map shrinks by 3 and is padded by `pad` on
    each side.
    """
    taps = [tap / sum(_BLUR) for tap in _BLUR]
    x = jnp.pad(x_BHWC, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = x.shape[1] - 3, x.shape[2] - 3
    x = sum(tap * x[:, i : i + rows] for i, tap in enumerate(taps))
    return sum(tap * x[:, :, j : j + columns] for j, tap in enumerate(taps))


def _deviation(x_BHWC, most):
    """(B, H, W, 1): the mean over places and channels of the standard deviation within groups of
    images.
    """
    B, H, W, _ = x_BHWC.shape
    group = max(g for g in range(1, min(most, B) + 1) if B % g == 0)
    spread = x_BHWC.astype(jnp.float32).reshape(group, B // group, *x_BHWC.shape[1:])
    deviation = jnp.mean(jnp.sqrt(jnp.var(spread, axis=0) + 1e-8), axis=(1, 2, 3))  # [group]
    return jnp.broadcast_to(jnp.tile(deviation, group)[:, None, None, None], (B, H, W, 1)).astype(
        x_BHWC.dtype
    )
