"""A text of any length as a fixed number of tokens: the perceiver resampler (Alayrac et al. 2022)
of imagen-pytorch.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.conv import Dense, boxed, channel_norm
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.unet_attention import FeedForward, affine_norm, attend, scaled_unit
from t2i_jax.types import Array


class PerceiverAttention(nn.Module):
    """Latents attend to a sequence and to themselves; unit queries and keys with learnt scales."""

    dim: int
    heads: int
    dim_head: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BLC: Array, latents_BNC: Array) -> Array:
        """The update of the latents."""
        B, inner = x_BLC.shape[0], self.heads * self.dim_head

        def split(t):
            return t.reshape(B, -1, self.heads, self.dim_head)

        x, latents = (
            affine_norm("norm", self.dtype)(x_BLC),
            affine_norm("norm_latents", self.dtype)(latents_BNC),
        )
        q = split(
            Dense(inner, ("embed", "heads"), bias=False, dtype=self.dtype, name="to_q")(latents)
        )
        both = jnp.concatenate([x, latents], axis=1)
        kv = Dense(2 * inner, ("embed", "heads"), bias=False, dtype=self.dtype, name="to_kv")(both)
        k, v = (split(t) for t in jnp.split(kv, 2, axis=-1))
        out = attend(
            scaled_unit(self, "q_scale", q, 8.0), scaled_unit(self, "k_scale", k), v
        ).reshape(B, -1, inner)
        out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype, name="to_out")(out)
        return affine_norm("out_norm", self.dtype)(out)


class PerceiverResampler(nn.Module):
    """Learnt latents, and some made of the sequence's mean, that attend to the sequence.

    Attributes:
      dim: width. latents: learnt ones. mean_latents: those made of the mean over the sequence.
      length: the longest sequence, for its learnt positions. depth: layers.
    """

    dim: int
    heads: int
    dim_head: int
    latents: int
    length: int
    depth: int = 2
    mean_latents: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BLC: Array) -> Array:
        """(B, mean_latents + latents, dim)."""
        B, L, C = x_BLC.shape
        normal = nn.initializers.normal(1.0)
        positions = parameter(
            self, "positions", boxed(normal, None, "embed"), (self.length, C), jnp.float32
        )
        learnt = parameter(
            self, "latents", boxed(normal, None, "embed"), (self.latents, C), jnp.float32
        )
        mean_BC = channel_norm("mean_norm", self.dtype)(jnp.mean(x_BLC.astype(jnp.float32), axis=1))
        made = Dense(self.mean_latents * C, ("embed", "mlp"), dtype=self.dtype, name="from_mean")(
            mean_BC
        )
        learnt_BNC = jnp.broadcast_to(learnt.astype(self.dtype), (B, self.latents, C))
        latents = jnp.concatenate([made.reshape(B, self.mean_latents, C), learnt_BNC], axis=1)
        x = x_BLC.astype(self.dtype) + positions[:L].astype(self.dtype)
        for i in range(self.depth):
            sizes = (C, self.heads, self.dim_head, self.dtype)
            latents = latents + PerceiverAttention(*sizes, name=f"attention_{i}")(x, latents)
            latents = latents + FeedForward(C, 4 * C, self.dtype, name=f"mlp_{i}")(latents)
        return latents
