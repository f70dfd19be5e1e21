"""The transformer of OpenAI's CLIP: pre-norm layers with biases everywhere, as GPT-2 has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.attention import attend_where
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.transformer import layer_fields, scanned
from t2i_jax.sharding import constrain
from t2i_jax.types import Array


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), with which OpenAI's weights were trained."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


def biased_norm(name: str, dtype: str = "float32", epsilon: float = 1e-5) -> nn.LayerNorm:
    """Layer norm with scale and shift, statistics in float32."""
    return nn.LayerNorm(
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=boxed(nn.initializers.ones, "embed"),
        bias_init=boxed(nn.initializers.zeros, "embed"),
        name=name,
    )


class ResidualAttentionLayer(nn.Module):
    """Self-attention and an MLP, each behind a norm, with a residual.

    Attributes:
      dim: width, a multiple of `heads`. mlp_dim: hidden width. depth: layers of the whole stack,
        by which the first weights of outputs are made smaller.
      activation: a key of `ACTIVATIONS`. epsilon: of the norms.
      causal: whether a position sees only those up to itself.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    causal: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x_BNC: Array, mask_BN: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, None]:
        """(x, None): the pair that a scan wants; `mask_BN` is True where a position may be seen."""
        x_BNC = x_BNC + self._attention(x_BNC, mask_BN)
        x_BNC = constrain(x_BNC + self._mlp(x_BNC), "batch", "length", None)
        return x_BNC, None

    def _attention(self, x_BNC, mask_BN):
        x_BNC = biased_norm("norm_attention", self.dtype, self.epsilon)(x_BNC)
        qkv = self._dense(3 * self.dim, "qkv", ("embed", "heads"), self.dim**-0.5)(x_BNC)
        shape = (*x_BNC.shape[:-1], self.heads, self.dim // self.heads)
        q, k, v = (t.reshape(shape) for t in jnp.split(qkv, 3, axis=-1))
        out = attend_where(q, k, v, mask_BN, self.causal)
        return self._dense(self.dim, "out", ("heads", "embed"), self._small)(
            out.reshape(x_BNC.shape)
        )

    def _mlp(self, x_BNC):
        x_BNC = biased_norm("norm_mlp", self.dtype, self.epsilon)(x_BNC)
        h = self._dense(self.mlp_dim, "wide", ("embed", "mlp"), (2 * self.dim) ** -0.5)(x_BNC)
        h = ACTIVATIONS[self.activation](h)
        return self._dense(self.dim, "narrow", ("mlp", "embed"), self._small)(h)

    @property
    def _small(self):
        return self.dim**-0.5 * (2 * self.depth) ** -0.5

    def _dense(self, features, name, axes, std):
        init = nn.initializers.normal(std)
        return Dense(features, axes, dtype=self.dtype, init=init, name=name)


class ResidualAttention(nn.Module):
    """`depth` layers; their parameters are stacked under "layers".

    Attributes:
      remat: remat policy, a key of `nn.transformer.REMAT`. The other fields
        are those of `ResidualAttentionLayer`.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    causal: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: Array, mask_BN: Array | None = None) -> Array:
        """The transformed sequence, same shape; `mask_BN` is True where a position may be seen."""
        layers = scanned(ResidualAttentionLayer, self.depth, self.remat, inputs=2)
        x_BNC, _ = layers(**layer_fields(self, ResidualAttentionLayer), name="layers")(
            x_BNC.astype(self.dtype), mask_BN, True
        )
        return x_BNC
