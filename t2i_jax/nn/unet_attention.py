"""The attention layers of imagen-pytorch's U-Net: unit queries and keys, a null key, softmax or
linear.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.conv import Dense, boxed, channel_norm, depthwise, depthwise_init
from t2i_jax.nn.dot_product import attention
from t2i_jax.nn.fused_attention import cudnn, cudnn_takes
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.quantize import unit
from t2i_jax.nn.query_blocks import MAX_SCORES, by_queries
from t2i_jax.types import Array

_SCALE = 8.0  # factor of the cosines of queries and keys


def affine_norm(name: str, dtype: str = "float32") -> nn.LayerNorm:
    """Layer norm with scale and shift, epsilon 1e-5, statistics in float32."""
    return nn.LayerNorm(
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=boxed(nn.initializers.ones, "embed"),
        bias_init=boxed(nn.initializers.zeros, "embed"),
        name=name,
    )


def attend(q_BQHD: Array, k_BKGD: Array, v_BKGD: Array, max_scores: int = MAX_SCORES) -> Array:
    """softmax(q . k) v, (B, Q, H, D); the scores are not scaled any further.

    Args:
      k_BKGD, v_BKGD: one per head, or one for all heads (G = 1).
      max_scores: scores per image (H * Q * K) above which cuDNN, or blocks of queries, avoid the
        matrix of scores.
    """
    if math.prod(q_BQHD.shape[1:3]) * k_BKGD.shape[1] > max_scores and cudnn_takes(q_BQHD):
        return cudnn(q_BQHD, k_BKGD, v_BKGD, scale=1.0)
    return by_queries(
        lambda q, _: attention(q, k_BKGD, v_BKGD, scale=1.0), q_BQHD, k_BKGD.shape[1], max_scores
    )


def linear_attend(q_BQHD: Array, k_BKHD: Array, v_BKHD: Array) -> Array:
    """Linear attention (Shen et al. 2018): q softmaxed over its channels, k over the keys; (B, Q,
    H, D).
    """
    q = nn.softmax(q_BQHD.astype(jnp.float32)).astype(v_BKHD.dtype)
    k = nn.softmax(k_BKHD.astype(jnp.float32), axis=1).astype(v_BKHD.dtype)
    return jnp.einsum("BQHD,BHDE->BQHE", q, jnp.einsum("BKHD,BKHE->BHDE", k, v_BKHD))


def scaled_unit(module: nn.Module, name: str, x: Array, factor: float = 1.0) -> Array:
    """Unit vectors times a learnt scale per channel (a parameter of `module`) and a constant;
    computed in float32.
    """
    scale = parameter(module, name, boxed(nn.initializers.ones, "kv"), (x.shape[-1],), jnp.float32)
    return (unit(x) * (scale * factor)).astype(x.dtype)


def _null(module, dim_head):
    init = boxed(nn.initializers.normal(1.0), None, "kv")
    return parameter(module, "null_kv", init, (2, dim_head), jnp.float32)


class Attention(nn.Module):
    """Self-attention with one key and value for all heads, which may also see a context and always
    sees a null key.

    Attributes:
      dim: width in and out. heads, dim_head: heads and their width. max_scores: see `attend`.
    """

    dim: int
    heads: int
    dim_head: int
    max_scores: int = MAX_SCORES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, context_BKC: Array | None = None) -> Array:
        """The update of the feature map."""
        B, D = x_BHWC.shape[0], self.dim_head

        def dense(width, axis, name, bias=True):
            return Dense(width, ("embed", axis), bias, self.dtype, name=name)

        x = channel_norm("norm", self.dtype)(x_BHWC).reshape(B, -1, self.dim)
        q_BQHD = dense(self.heads * D, "heads", "to_q", bias=False)(x).reshape(B, -1, self.heads, D)
        null_B1C = jnp.broadcast_to(
            _null(self, D).astype(self.dtype).reshape(1, 1, 2 * D), (B, 1, 2 * D)
        )
        kv = [null_B1C, dense(2 * D, "kv", "to_kv", bias=False)(x)]
        if context_BKC is not None:
            kv.insert(
                0,
                dense(2 * D, "kv", "context_kv")(
                    affine_norm("context_norm", self.dtype)(context_BKC)
                ),
            )
        k_BKD, v_BKD = jnp.split(jnp.concatenate(kv, axis=1), 2, axis=-1)
        q, k = scaled_unit(self, "q_scale", q_BQHD, _SCALE), scaled_unit(self, "k_scale", k_BKD)
        out = attend(q, k[:, :, None], v_BKD[:, :, None], self.max_scores).reshape(
            B, -1, self.heads * D
        )
        out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype, name="to_out")(out)
        return channel_norm("out_norm", self.dtype)(out).reshape(x_BHWC.shape)


class CrossAttention(nn.Module):
    """Attention of a feature map to a context and a null key, one key and value per head; fields as
    in `Attention`.

    Attributes:
      linear: linear attention instead of softmax; q and k are then not made unit vectors.
    """

    dim: int
    heads: int
    dim_head: int
    linear: bool = False
    max_scores: int = MAX_SCORES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, context_BKC: Array) -> Array:
        """The update of the feature map."""
        B, inner = x_BHWC.shape[0], self.heads * self.dim_head

        def split(x):
            return x.reshape(B, -1, self.heads, self.dim_head)

        x = channel_norm("norm", self.dtype)(x_BHWC)
        q = split(Dense(inner, ("embed", "heads"), bias=False, dtype=self.dtype, name="to_q")(x))
        kv = Dense(2 * inner, ("embed", "heads"), bias=False, dtype=self.dtype, name="to_kv")(
            context_BKC
        )
        nulls = [
            jnp.broadcast_to(n, (B, 1, self.heads, self.dim_head))
            for n in _null(self, self.dim_head)
        ]
        k, v = (
            jnp.concatenate([null.astype(self.dtype), split(t)], axis=1)
            for null, t in zip(nulls, jnp.split(kv, 2, axis=-1), strict=True)
        )
        if self.linear:
            out = linear_attend(q, k, v) * _SCALE
        else:
            q, k = scaled_unit(self, "q_scale", q, _SCALE), scaled_unit(self, "k_scale", k)
            out = attend(q, k, v, self.max_scores)
        out = out.reshape(B, -1, inner)
        out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype, name="to_out")(out)
        return channel_norm("out_norm", self.dtype)(out).reshape(x_BHWC.shape)


class LinearAttention(nn.Module):
    """Linear attention of a feature map to itself and a context, with a 3x3 depthwise convolution
    on q, k and v.

    Attributes:
      dropout: on the inputs of the projections to q, k and v; needs an rng "dropout" where it is
        not 0.
    """

    dim: int
    heads: int
    dim_head: int
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, context_BKC: Array) -> Array:
        """The update of the feature map."""
        B, inner = x_BHWC.shape[0], self.heads * self.dim_head

        def split(x):
            return x.reshape(B, -1, self.heads, self.dim_head)

        x = channel_norm("norm", self.dtype)(x_BHWC)
        q, k, v = (split(self._mixed(name, x)) for name in "qkv")
        context = affine_norm("context_norm", self.dtype)(context_BKC)
        context = Dense(
            2 * inner, ("embed", "heads"), bias=False, dtype=self.dtype, name="context_kv"
        )(context)
        k, v = (
            jnp.concatenate([own, split(t)], axis=1)
            for own, t in zip((k, v), jnp.split(context, 2, axis=-1), strict=True)
        )
        out = nn.silu(linear_attend(q, k, v) * self.dim_head**-0.5).reshape(
            *x_BHWC.shape[:-1], inner
        )
        out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype, name="to_out")(out)
        return channel_norm("out_norm", self.dtype)(out)

    def _mixed(self, name, x_BHWC):
        inner = self.heads * self.dim_head
        x = nn.Dropout(self.dropout, deterministic=False)(x_BHWC) if self.dropout else x_BHWC
        x = Dense(inner, ("embed", "heads"), bias=False, dtype=self.dtype, name=f"to_{name}")(x)
        kernel = parameter(
            self,
            f"{name}_conv",
            boxed(depthwise_init, None, None, "heads"),
            (3, 3, inner),
            jnp.float32,
        )
        return depthwise(x, kernel.astype(x.dtype), jnp.zeros((inner,), x.dtype))


class FeedForward(nn.Module):
    """Norm, widen, GELU, norm, narrow; without biases. `hidden`: the inner width."""

    dim: int
    hidden: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The update of (..., dim)."""
        x = channel_norm("norm", self.dtype)(x)
        x = gelu(Dense(self.hidden, ("embed", "mlp"), bias=False, dtype=self.dtype, name="wide")(x))
        x = channel_norm("inner_norm", self.dtype)(x)
        return Dense(self.dim, ("mlp", "embed"), bias=False, dtype=self.dtype, name="narrow")(x)


class TransformerBlock(nn.Module):
    """Layers of attention over a feature map and feed-forward, with residuals.

    Attributes:
      depth: layers. hidden: inner width of the feed-forward. linear: `LinearAttention` instead of
      `Attention`. The other fields are those of `Attention` and `LinearAttention`.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int
    hidden: int
    linear: bool = False
    dropout: float = 0.0
    max_scores: int = MAX_SCORES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array, context_BKC: Array | None = None) -> Array:
        """The feature map after all layers."""
        x = x_BHWC
        for i in range(self.depth):
            name, sizes = f"attention_{i}", (self.dim, self.heads, self.dim_head)
            if self.linear:
                attention = LinearAttention(*sizes, self.dropout, self.dtype, name=name)
            else:
                attention = Attention(*sizes, self.max_scores, self.dtype, name=name)
            x = x + attention(x, context_BKC)  # pyright: ignore[reportArgumentType]
            x = x + FeedForward(self.dim, self.hidden, self.dtype, name=f"mlp_{i}")(x)
        return x
