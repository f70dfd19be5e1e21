"""Conditioning of dalle2-pytorch's U-Net: a timestep, an image embedding and a text, each as
tokens, the first two also as a vector.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.unet_attention import affine_norm
from t2i_jax.types import Array

_NORMAL = nn.initializers.normal(1.0)


def sinusoid(values_B: Array, dim: int) -> Array:
    """Sines, then cosines, (B, 2 * (dim // 2)), of numbers times frequencies from 1 to 1/10000."""
    half = dim // 2
    rates = jnp.exp(jnp.arange(half, dtype=jnp.float32) * -(math.log(10_000.0) / (half - 1)))
    angles = values_B.astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeCondition(nn.Module):
    """A timestep as a vector and as tokens.

    Attributes:
      features: of its sinusoid. dim: width of the vector. tokens, token_dim: number and width of
        the tokens; 0 tokens: the vector alone.
    """

    features: int
    dim: int
    tokens: int
    token_dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, level_B: Array) -> tuple[Array, Array]:
        """The vector (B, dim) and the tokens (B, tokens, token_dim)."""

        def dense(width, axes, name):
            return Dense(width, axes, dtype=self.dtype, name=name)

        waves = sinusoid(level_B, self.features)
        hidden = gelu(dense(self.dim, (None, "embed"), "hidden")(waves))
        vector = dense(self.dim, ("embed", "mlp"), "vector")(hidden)
        if not self.tokens:
            return vector, jnp.zeros((len(level_B), 0, self.token_dim), self.dtype)
        wide = dense(self.tokens * self.token_dim, ("embed", "mlp"), "tokens")(hidden)
        return vector, wide.reshape(-1, self.tokens, self.token_dim)


class ImageCondition(nn.Module):
    """An image embedding as a vector and as tokens, with learnt stand-ins for rows without it.

    Attributes:
      dim: width of the vector. tokens, token_dim: number and width of the tokens.
      vector: whether there is a vector. projected: whether the tokens are linear in the embedding;
        else every token is the embedding, whose width is then `token_dim`.
    """

    dim: int
    tokens: int
    token_dim: int
    vector: bool = True
    projected: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, embed_BD: Array | None, keep_B: Array | None
    ) -> tuple[Array | None, Array | None]:
        """The vector (B, dim), None where there is none, and the tokens (B, tokens, token_dim).

        Args:
          embed_BD: embeddings; None: only the parameters that dalle2-pytorch makes for every
            network are made, and the result is (None, None).
          keep_B: False in rows whose embedding is replaced by the stand-ins.
        """
        null_NC = parameter(
            self, "null_tokens", boxed(_NORMAL, None, "embed"), (self.tokens, self.token_dim)
        )
        null_V = parameter(self, "null_vector", boxed(_NORMAL, "embed"), (self.dim,))
        if embed_BD is None:
            return None, None
        keep_B = jnp.ones(len(embed_BD), bool) if keep_B is None else keep_B.astype(bool)

        def dense(width, name):
            return Dense(width, ("text", "embed"), dtype=self.dtype, name=name)

        if self.projected:
            tokens = dense(self.tokens * self.token_dim, "to_tokens")(embed_BD)
            tokens = tokens.reshape(-1, self.tokens, self.token_dim)
        else:
            tokens = jnp.repeat(embed_BD[:, None].astype(self.dtype), self.tokens, axis=1)
        tokens = jnp.where(keep_B[:, None, None], tokens, null_NC.astype(self.dtype))
        if not self.vector:
            return None, tokens
        vector = gelu(dense(self.dim, "to_vector")(embed_BD))
        return jnp.where(keep_B[:, None], vector, null_V.astype(self.dtype)), tokens


class TextTokens(nn.Module):
    """Encodings of a text as a fixed number of tokens, with learnt stand-ins at padding and in rows
    without a text.

    Attributes:
      dim: width of the tokens. length: their number: texts are cut, or filled up.
    """

    dim: int
    length: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, text_BLE: Array | None, mask_BL: Array | None, keep_B: Array | None
    ) -> Array | None:
        """(B, length, dim); None without encodings.

        Args:
          text_BLE: encodings; None: as in `ImageCondition`.
          mask_BL: True at tokens; None: everywhere. keep_B: False in rows without their text.
        """
        shape = (self.length, self.dim)
        null_LC = parameter(self, "null_tokens", boxed(_NORMAL, None, "embed"), shape)
        if text_BLE is None:
            return None
        B, L = text_BLE.shape[0], min(text_BLE.shape[1], self.length)
        known_BL = jnp.ones((B, L), bool) if mask_BL is None else mask_BL[:, :L].astype(bool)
        if keep_B is not None:
            known_BL = known_BL & keep_B[:, None].astype(bool)
        axes = ("text", "embed")
        tokens = Dense(self.dim, axes, dtype=self.dtype, name="to_tokens")(text_BLE[:, :L])
        fill = ((0, 0), (0, self.length - L))
        tokens, known_BL = jnp.pad(tokens, (*fill, (0, 0))), jnp.pad(known_BL, fill)
        return jnp.where(known_BL[..., None], tokens, null_LC.astype(self.dtype))


class TextVector(nn.Module):
    """The mean of a text's tokens through two layers, for the vector of the timestep, with a learnt
    stand-in for rows without a text.

    GLIDE (Nichol et al. 2021, section 2.3) adds its last token there, DALL-E 2 does as GLIDE
    (Ramesh et al. 2022, section 2.1); dalle2-pytorch has none. The layers are those of Imagen's
    `TextCondition`.

    Attributes:
      dim: width of the vector.
    """

    dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens_BLC: Array, keep_B: Array | None) -> Array:
        """(B, dim).

        Args:
          tokens_BLC: of `TextTokens`. keep_B: False in rows without their text; None: all True.
        """

        def dense(axes, name):
            return Dense(self.dim, axes, dtype=self.dtype, name=name)

        null_V = parameter(self, "null_vector", boxed(_NORMAL, "embed"), (self.dim,))
        mean_BC = jnp.mean(tokens_BLC.astype(jnp.float32), axis=1)
        normed_BC = affine_norm("norm", self.dtype)(mean_BC)
        hidden = nn.silu(dense(("embed", "mlp"), "hidden")(normed_BC))
        vector = dense(("mlp", "embed"), "vector")(hidden)
        if keep_B is None:
            return vector
        return jnp.where(keep_B[:, None].astype(bool), vector, null_V.astype(self.dtype))
