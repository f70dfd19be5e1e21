"""Conditioning of imagen-pytorch's U-Net: a noise level and a text, each as a vector and as
tokens.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.perceiver import PerceiverResampler
from t2i_jax.nn.unet_attention import affine_norm
from t2i_jax.types import Array

POSITIONS = 512  # the package's resampler has this many learnt positions, however long the text is


class LevelCondition(nn.Module):
    """A noise level (log-SNR, or a quarter of log sigma) as Fourier features of learnt frequencies,
    vector and tokens.

    Attributes:
      features: Fourier features, even. dim: width of the vector. tokens, token_dim: number and
        width of the tokens.
    """

    features: int
    dim: int
    tokens: int
    token_dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, level_B: Array) -> tuple[Array, Array]:
        """The vector (B, dim) and the tokens (B, tokens, token_dim)."""
        level_B1 = level_B.astype(jnp.float32)[:, None]
        init = boxed(nn.initializers.normal(1.0), None)
        angles_BF = (
            level_B1
            * parameter(self, "frequencies", init, (self.features // 2,), jnp.float32)
            * 2
            * math.pi
        )
        fourier = jnp.concatenate([level_B1, jnp.sin(angles_BF), jnp.cos(angles_BF)], axis=-1)
        hidden = nn.silu(Dense(self.dim, (None, "embed"), dtype=self.dtype, name="hidden")(fourier))
        vector = Dense(self.dim, ("embed", "mlp"), dtype=self.dtype, name="vector")(hidden)
        tokens = Dense(
            self.tokens * self.token_dim, ("embed", "mlp"), dtype=self.dtype, name="tokens"
        )(hidden)
        return vector, tokens.reshape(-1, self.tokens, self.token_dim)


class TextCondition(nn.Module):
    """A text as tokens for cross-attention and as a vector, with learnt stand-ins where there is
    none.

    Attributes:
      dim: width of the tokens. vector_dim: width of the vector. length: tokens of a text, cut or
        filled up.
      latents: number of tokens (and four more) to which the text is resampled; None: it is not
        resampled.
      heads, dim_head: of the resampler.
    """

    dim: int
    vector_dim: int
    length: int
    latents: int | None
    heads: int
    dim_head: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, text_BLD: Array | None, mask_BL: Array | None, keep_B: Array | None
    ) -> tuple[Array, Array]:
        """The vector (B, vector_dim) and the tokens (B, N, dim).

        Args:
          text_BLD: embeddings; None: only the parameters that a network without texts has too are
            made.
          mask_BL: True where there is text: elsewhere the learnt token of that position stands.
            None: everywhere, and what is filled up stays 0.
          keep_B: conditioning mask, False in rows whose text is replaced by the learnt null. None:
            all True.
        """
        normal = nn.initializers.normal(1.0)
        null_LC = parameter(
            self, "null_tokens", boxed(normal, None, "embed"), (self.length, self.dim), jnp.float32
        )
        null_V = parameter(
            self, "null_vector", boxed(normal, "embed"), (self.vector_dim,), jnp.float32
        )
        if text_BLD is None:
            return null_V[None].astype(self.dtype), self._pooled(null_LC[None].astype(self.dtype))

        def dense(width, axes, name):
            return Dense(width, axes, dtype=self.dtype, name=name)

        fill = ((0, 0), (0, max(self.length - text_BLD.shape[1], 0)))
        tokens_BLC = dense(self.dim, ("text", "embed"), "to_tokens")(text_BLD[:, : self.length])
        tokens_BLC = jnp.pad(tokens_BLC, (*fill, (0, 0)))
        keep_B = jnp.ones(text_BLD.shape[:1], bool) if keep_B is None else keep_B
        keep_BL = keep_B[:, None]
        if mask_BL is not None:
            keep_BL = keep_BL & jnp.pad(mask_BL[:, : self.length].astype(bool), fill)
        tokens = self._pooled(jnp.where(keep_BL[..., None], tokens_BLC, null_LC.astype(self.dtype)))
        mean_BC = affine_norm("vector_norm", self.dtype)(
            jnp.mean(tokens.astype(jnp.float32), axis=1)
        )
        hidden = nn.silu(dense(self.vector_dim, ("embed", "mlp"), "vector_hidden")(mean_BC))
        vector = dense(self.vector_dim, ("mlp", "embed"), "vector")(hidden)
        return jnp.where(keep_B[:, None], vector, null_V.astype(self.dtype)), tokens

    def _pooled(self, tokens_BLC):
        if self.latents is None:
            return tokens_BLC
        length = max(POSITIONS, self.length)
        sizes = (self.dim, self.heads, self.dim_head, self.latents, length)
        return PerceiverResampler(*sizes, dtype=self.dtype, name="pool")(tokens_BLC)
