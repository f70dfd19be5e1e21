"""The residual block of dalle2-pytorch: convolution, group norm, scale and shift, SiLU, twice, with
cross-attention between.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.nn.conv import POINTWISE, Dense, boxed, conv, uniform_fan_in
from t2i_jax.nn.convolution import convolve
from t2i_jax.nn.group_norm import group_norm
from t2i_jax.nn.null_attention import NullCrossAttention
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.unet_attention import MAX_SCORES
from t2i_jax.types import Array


class StandardizedConv(nn.Module):
    """A 3x3 convolution of the same size whose weights are standardised per output channel (Qiao
    et al. 2019): mean 0, variance 1, with 1e-5 added to the variance.

    Attributes:
      features: output channels.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, H, W, features)."""
        init = boxed(uniform_fan_in, None, None, "conv_in", "conv_out")
        kernel = parameter(
            self, "kernel", init, (3, 3, x_BHWC.shape[-1], self.features), jnp.float32
        )
        zeros = boxed(nn.initializers.zeros, "conv_out")
        bias = parameter(self, "bias", zeros, (self.features,), jnp.float32)
        mean, variance = (f(kernel, axis=(0, 1, 2)) for f in (jnp.mean, jnp.var))
        kernel = (kernel - mean) * jax.lax.rsqrt(variance + 1e-5)
        y = convolve(x_BHWC.astype(self.dtype), kernel.astype(self.dtype), 1, 1)
        return y + bias.astype(self.dtype)


class GroupBlock(nn.Module):
    """3x3 convolution, group norm, an optional scale and shift per channel (FiLM), SiLU.

    Attributes:
      features: output channels. groups: of the norm; they divide `features`.
      standardized: whether the convolution is a `StandardizedConv`.
    """

    features: int
    groups: int = 8
    standardized: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, scale_shift: tuple[Array, Array] | None = None) -> Array:
        """(B, H, W, features); `scale_shift` are (B, 1, 1, C) each, a scale of 0 changes
        nothing.
        """
        if self.standardized:
            x = StandardizedConv(self.features, self.dtype, name="conv")(x_BHWC)
        else:
            x = conv(self.features, 3, "conv", dtype=self.dtype)(x_BHWC)
        x = group_norm(self.groups, "norm", self.dtype)(x)
        if scale_shift is not None:
            x = x * (scale_shift[0] + 1) + scale_shift[1]
        return nn.silu(x)


class GroupResnetBlock(nn.Module):
    """x plus: block with FiLM from the time vector, cross-attention (optional), block.

    Attributes:
      features: output channels; where the input has others, the residual goes through a linear map.
      cross: heads of the cross-attention to the tokens, and their width; None: there is none.
        cosine: see `NullSelfAttention`.
      groups, standardized: see `GroupBlock`. max_scores: see `unet_attention.attend`.
    """

    features: int
    cross: tuple[int, int] | None = None
    cosine: bool = False
    groups: int = 8
    standardized: bool = False
    max_scores: int = MAX_SCORES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, time_BT: Array, tokens_BKC: Array | None = None) -> Array:
        """(B, H, W, features)."""
        axes = ("embed", "conv_out")
        film = Dense(2 * self.features, axes, dtype=self.dtype, name="time")(nn.silu(time_BT))
        scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
        own = (self.features, self.groups, self.standardized, self.dtype)
        h = GroupBlock(*own, name="block1")(x_BHWC, (scale, shift))
        if self.cross is not None and tokens_BKC is not None:
            attention = NullCrossAttention(
                self.features,
                *self.cross,
                cosine=self.cosine,
                max_scores=self.max_scores,
                dtype=self.dtype,
                name="cross_attention",
            )
            h = h + attention(h, tokens_BKC)
        h = GroupBlock(*own, name="block2")(h)
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = Dense(self.features, POINTWISE, dtype=self.dtype, name="residual")(x_BHWC)
        return h + x_BHWC
