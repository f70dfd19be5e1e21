"""The residual block of imagen-pytorch: two convolutions, cross-attention between them, FiLM, a
global gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.nn.conv import POINTWISE, Dense, boxed, conv
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.quantize import unit
from t2i_jax.nn.transformer import REMAT
from t2i_jax.nn.unet_attention import MAX_SCORES, CrossAttention
from t2i_jax.sharding import constrain
from t2i_jax.types import Array


class RmsNorm(nn.Module):
    """Root-mean-square norm over the channels of each place, with a learnt scale; in float32."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The normalised feature map, of the same shape."""
        scale = parameter(
            self, "scale", boxed(nn.initializers.ones, "embed"), (x.shape[-1],), jnp.float32
        )
        return (unit(x) * (scale * math.sqrt(x.shape[-1]))).astype(self.dtype)


class Block(nn.Module):
    """Norm, an optional scale and shift per channel (FiLM), SiLU, 3x3 convolution."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, scale_shift: tuple[Array, Array] | None = None) -> Array:
        """(B, H, W, features); `scale_shift` are (B, 1, 1, C) each, a scale of 0 changes
        nothing.
        """
        x = RmsNorm(self.dtype, name="norm")(x_BHWC)
        if scale_shift is not None:
            x = x * (scale_shift[0] + 1) + scale_shift[1]
        return conv(self.features, 3, "conv", dtype=self.dtype)(nn.silu(x))


class GlobalContext(nn.Module):
    """A gate in (0, 1) per channel from an attention-weighted mean over the feature map (Cao et al.
    2019, GCNet).
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, 1, 1, C)."""
        B, _, _, C = x_BHWC.shape
        x_BNC = x_BHWC.reshape(B, -1, C)
        scores_BN1 = Dense(1, (POINTWISE[0], None), dtype=self.dtype, name="scores")(x_BNC).astype(
            jnp.float32
        )
        weights = nn.softmax(scores_BN1, axis=1)[..., 0].astype(self.dtype)
        mean_BC = jnp.einsum("BN,BNC->BC", weights, x_BNC)
        hidden = nn.silu(Dense(max(3, C // 2), POINTWISE, dtype=self.dtype, name="hidden")(mean_BC))
        return nn.sigmoid(Dense(C, POINTWISE, dtype=self.dtype, name="gate")(hidden))[:, None, None]


class ResnetBlock(nn.Module):
    """x plus: block, cross-attention (optional), block with FiLM from the time vector, gate
    (optional).

    Attributes:
      features: output channels; where the input has others, the residual goes through a linear map.
      cross: "softmax" or "linear" cross-attention to the condition; None: none.
      gate: whether `GlobalContext` multiplies the update. heads, dim_head, max_scores: of the
        cross-attention.
    """

    features: int
    cross: str | None = None
    gate: bool = False
    heads: int = 8
    dim_head: int = 64
    max_scores: int = MAX_SCORES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, time_BT: Array, context_BKC: Array | None = None) -> Array:
        """(B, H, W, features)."""
        film = Dense(2 * self.features, ("embed", "conv_out"), dtype=self.dtype, name="time")(
            nn.silu(time_BT)
        )
        h = Block(self.features, self.dtype, name="block1")(x_BHWC)
        if self.cross:
            sizes, linear = (self.features, self.heads, self.dim_head), self.cross == "linear"
            attend = CrossAttention(
                *sizes, linear, self.max_scores, self.dtype, name="cross_attention"
            )
            h = h + attend(h, context_BKC)  # pyright: ignore[reportArgumentType]
        scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
        h = Block(self.features, self.dtype, name="block2")(h, (scale, shift))
        if self.gate:
            h = h * GlobalContext(self.dtype, name="gate")(h)
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = Dense(self.features, POINTWISE, dtype=self.dtype, name="residual")(x_BHWC)
        return h + x_BHWC


class ResnetStack(nn.Module):
    """`ResnetBlock`s of one shape without cross-attention, one after the other, one by one or as a
    compiled loop.

    Attributes:
      names: of the blocks, one each, under which their parameters stand whether they are a loop or
        not.
      features, gate, heads, dim_head, max_scores: as in `ResnetBlock`.
      remat: remat policy of each block, a key of `REMAT`.
      scan: one block is compiled and looped over the stacked parameters of all, in a fraction of
        the time where there are many, at the price of a copy of their parameters and feature maps.
        The parameters are made one by one.
    """

    names: tuple[str, ...]
    features: int
    gate: bool = False
    heads: int = 8
    dim_head: int = 64
    max_scores: int = MAX_SCORES
    remat: str = "none"
    scan: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BHWC: Array,
        time_BT: Array,
        context_BKC: Array | None = None,
        joined: Sequence[Array] | None = None,
    ) -> tuple[Array, Sequence[Array]]:
        """The feature map after the last block, and those after each one.

        Args:
          joined: feature maps (B, H, W, any), one per block, that are appended to the channels of
            what goes into it. None: nothing is appended.
        """
        condition = (time_BT, context_BKC)
        parts = [()] * len(self.names) if joined is None else [(part,) for part in joined]
        if self.scan and len(self.names) > 1 and not self.is_initializing():
            return self._looped(x_BHWC, condition, parts)
        make = (
            ResnetBlock if self.remat == "none" else nn.remat(ResnetBlock, policy=REMAT[self.remat])
        )
        blocks = [make(**self._shape(), name=name) for name in self.names]
        x, maps = x_BHWC, []
        for block, part in zip(blocks, parts, strict=True):
            x = _after(block, x, part, condition)
            maps.append(x)
        return x, maps

    def _looped(self, x_BHWC, condition, parts):
        params = [self.variables["params"][name] for name in self.names]
        block = ResnetBlock(**self._shape(), parent=None)

        def step(x, inputs):
            own, part = inputs
            x = _after(
                lambda *arguments: block.apply({"params": own}, *arguments), x, part, condition
            )
            return x, x

        if self.remat != "none":
            step = jax.checkpoint(step, policy=REMAT[self.remat], prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(params, parts, strict=True))
        return jax.lax.scan(step, x_BHWC, stacked)

    @nn.nowrap
    def _shape(self):
        shared = ("features", "gate", "heads", "dim_head", "max_scores", "dtype")
        return {name: getattr(self, name) for name in shared}


def _after(block, x_BHWC, part, condition):
    """The feature map after a block, whose input has `part` (nothing or one map) appended."""
    x_BHWC = jnp.concatenate([x_BHWC, *part], axis=-1) if part else x_BHWC
    return constrain(block(x_BHWC, *condition), "batch", None, None, None)
