"""The transformer of x-clip: pre-norm layers whose attention and gated feed-forward end in a norm
of their own (Shleifer et al. 2021, NormFormer).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.attention import attend_where
from t2i_jax.nn.conv import Dense, channel_norm
from t2i_jax.nn.transformer import layer_fields, scanned
from t2i_jax.sharding import constrain
from t2i_jax.types import Array

_MOST_ROTARY = 32  # channels of a head that rotate at most


class NormFormerLayer(nn.Module):
    """Self-attention and a feed-forward network gated by GELU, each normalised before and within.

    Attributes:
      dim: width. heads, dim_head: heads and their width. mlp_dim: hidden width.
      causal: whether a position sees only those up to itself.
      rotary: whether queries, keys and values turn with their position.
    """

    dim: int
    heads: int
    dim_head: int
    mlp_dim: int
    causal: bool = False
    rotary: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x_BNC: Array, mask_BN: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, None]:
        """(x, None): the pair that a scan wants; `mask_BN` is True where a position may be seen."""
        x_BNC = x_BNC + self._attention(x_BNC, mask_BN)
        x_BNC = constrain(x_BNC + self._feed_forward(x_BNC), "batch", "length", None)
        return x_BNC, None

    def _attention(self, x_BNC, mask_BN):
        inner = self.heads * self.dim_head
        x_BNC = channel_norm("norm_attention", self.dtype)(x_BNC)
        qkv = Dense(3 * inner, ("embed", "heads"), bias=False, dtype=self.dtype, name="to_qkv")
        parts = jnp.split(qkv(x_BNC), 3, axis=-1)
        q, k, v = (t.reshape(*t.shape[:-1], self.heads, self.dim_head) for t in parts)
        if self.rotary:
            q, k, v = (rotated(t) for t in (q, k, v))
        out_BNHD = attend_where(q, k, v, mask_BN, self.causal)
        out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype, name="to_out")
        y_BNC = out(out_BNHD.reshape(*x_BNC.shape[:-1], inner))
        return channel_norm("norm_out", self.dtype)(y_BNC)

    def _feed_forward(self, x_BNC):
        x_BNC = channel_norm("norm_mlp", self.dtype)(x_BNC)
        wide = Dense(2 * self.mlp_dim, ("embed", "mlp"), bias=False, dtype=self.dtype, name="wide")
        h, gate = jnp.split(wide(x_BNC), 2, axis=-1)
        h = channel_norm("norm_hidden", self.dtype)(h * gelu(gate))
        return Dense(self.dim, ("mlp", "embed"), bias=False, dtype=self.dtype, name="narrow")(h)


class NormFormer(nn.Module):
    """A norm, `depth` layers and a norm; the parameters of all layers are stacked under "layers".

    Attributes:
      depth: layers. remat: remat policy, a key of `nn.transformer.REMAT`. The
        other fields are those of `NormFormerLayer`.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int
    mlp_dim: int
    causal: bool = False
    rotary: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: Array, mask_BN: Array | None = None) -> Array:
        """The transformed sequence, same shape; `mask_BN` is True where a position may be seen."""
        x_BNC = channel_norm("norm_in", self.dtype)(x_BNC.astype(self.dtype))
        layers = scanned(NormFormerLayer, self.depth, self.remat, inputs=2)
        x_BNC, _ = layers(**layer_fields(self, NormFormerLayer), name="layers")(
            x_BNC, mask_BN, True
        )
        return channel_norm("norm_out", self.dtype)(x_BNC)


def rotated(x_BNHD: Array) -> Array:
    """x with its first channels, up to 32 of each head, turned by angles that grow with the
    position (Su et al. 2021): channel i and channel i + half are one pair.
    """
    turning = min(x_BNHD.shape[-1], _MOST_ROTARY)
    rates = 10000.0 ** (-jnp.arange(0, turning, 2, dtype=jnp.float32) / turning)
    angles_ND = jnp.arange(x_BNHD.shape[1], dtype=jnp.float32)[:, None] * rates
    cos, sin = (f(angles_ND)[:, None].astype(x_BNHD.dtype) for f in (jnp.cos, jnp.sin))
    one, other = jnp.split(x_BNHD[..., :turning], 2, axis=-1)
    turned = [one * cos - other * sin, other * cos + one * sin, x_BNHD[..., turning:]]
    return jnp.concatenate(turned, axis=-1)
