"""The attention layers of dalle2-pytorch's U-Net: softmax attention with a null key, and linear
attention.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.conv import Dense, boxed, channel_norm
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.quantize import unit
from t2i_jax.nn.unet_attention import MAX_SCORES, attend
from t2i_jax.types import Array

_COSINE_SCALE = 16.0  # factor of the cosines of queries and keys


def _null(module, dim_head):
    init = boxed(nn.initializers.normal(1.0), None, "kv")
    return parameter(module, "null_kv", init, (2, dim_head), jnp.float32)


def _scaled(q, k, cosine, scale):
    """Queries and keys whose products are the scores."""
    if cosine:
        return (_COSINE_SCALE * unit(q)).astype(q.dtype), unit(k).astype(k.dtype)
    return q * scale, k


class NullSelfAttention(nn.Module):
    """Self-attention over the places of a feature map, with one key and value for all heads and a
    learnt null key; the update is normalised.

    Attributes:
      dim: width in and out. heads, dim_head: heads and their width.
      cosine: scores are 16 times the cosines of queries and keys. squared_scale: without `cosine`
        scores are q k / dim_head, as dalle2-pytorch has them, and not q k / sqrt(dim_head).
      max_scores: see `unet_attention.attend`.
    """

    dim: int
    heads: int
    dim_head: int
    cosine: bool = False
    squared_scale: bool = False
    max_scores: int = MAX_SCORES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The update of the feature map."""
        B, D = x_BHWC.shape[0], self.dim_head

        def dense(width, axes, name):
            return Dense(width, axes, bias=False, dtype=self.dtype, name=name)

        x = channel_norm("norm", self.dtype)(x_BHWC).reshape(B, -1, self.dim)
        q = dense(self.heads * D, ("embed", "heads"), "to_q")(x).reshape(B, -1, self.heads, D)
        null = _null(self, D).astype(self.dtype).reshape(1, 1, 2 * D)
        kv = dense(2 * D, ("embed", "kv"), "to_kv")(x)
        kv = jnp.concatenate([jnp.broadcast_to(null, (B, 1, 2 * D)), kv], axis=1)
        k, v = jnp.split(kv, 2, axis=-1)
        q, k = _scaled(q, k, self.cosine, D ** (-1.0 if self.squared_scale else -0.5))
        out = attend(q, k[:, :, None], v[:, :, None], self.max_scores).reshape(
            B, -1, self.heads * D
        )
        out = dense(self.dim, ("heads", "embed"), "to_out")(out)
        return channel_norm("out_norm", self.dtype)(out).reshape(x_BHWC.shape)


class NullCrossAttention(nn.Module):
    """Attention of a feature map to tokens and a learnt null key, which all heads share; the update
    is normalised, the tokens are not.

    Attributes:
      dim: width in and out. heads, dim_head, cosine, max_scores: as in `NullSelfAttention`.
    """

    dim: int
    heads: int
    dim_head: int
    cosine: bool = False
    max_scores: int = MAX_SCORES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, tokens_BKC: Array) -> Array:
        """The update of the feature map."""
        B, inner = x_BHWC.shape[0], self.heads * self.dim_head

        def dense(width, axes, name):
            return Dense(width, axes, bias=False, dtype=self.dtype, name=name)

        def split(t):
            return t.reshape(B, -1, self.heads, self.dim_head)

        x = channel_norm("norm", self.dtype)(x_BHWC)
        q = split(dense(inner, ("embed", "heads"), "to_q")(x))
        kv = jnp.split(dense(2 * inner, ("embed", "heads"), "to_kv")(tokens_BKC), 2, axis=-1)
        nulls = [
            jnp.broadcast_to(null.astype(self.dtype), (B, 1, self.heads, self.dim_head))
            for null in _null(self, self.dim_head)
        ]
        k, v = (
            jnp.concatenate([null, split(t)], axis=1) for null, t in zip(nulls, kv, strict=True)
        )
        q, k = _scaled(q, k, self.cosine, self.dim_head**-0.5)
        out = attend(q, k, v, self.max_scores).reshape(*x_BHWC.shape[:-1], inner)
        out = dense(self.dim, ("heads", "embed"), "to_out")(out)
        return channel_norm("out_norm", self.dtype)(out)


class UnitLinearAttention(nn.Module):
    """Linear attention of a feature map to itself (Shen et al. 2018) with unit values; the update
    is normalised.

    Attributes:
      dim: width in and out. heads, dim_head: heads and their width.
    """

    dim: int
    heads: int
    dim_head: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The update of the feature map."""
        B, H, W, _ = x_BHWC.shape
        inner = self.heads * self.dim_head
        x = channel_norm("norm", self.dtype)(x_BHWC)
        qkv = Dense(3 * inner, ("embed", "heads"), bias=False, dtype=self.dtype, name="to_qkv")(x)
        q, k, v = (
            t.reshape(B, H * W, self.heads, self.dim_head).astype(jnp.float32)
            for t in jnp.split(qkv, 3, axis=-1)
        )
        q = (nn.softmax(q) * self.dim_head**-0.5).astype(self.dtype)
        k = (nn.softmax(k, axis=1)).astype(self.dtype)
        v = (unit(v) / (H * W)).astype(self.dtype)
        out = jnp.einsum("BQHD,BHDE->BQHE", q, jnp.einsum("BKHD,BKHE->BHDE", k, v))
        out = gelu(out.reshape(B, H, W, inner))
        out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype, name="to_out")(out)
        return channel_norm("out_norm", self.dtype)(out)
