"""The two networks: a caption's colour, and the mean colour."""

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.conv import boxed
from t2i_jax.types import Array


class MeanColour(nn.Module):
    """One colour, in [-1, 1], for all images."""

    @nn.compact
    def __call__(self) -> Array:
        """(3,) float32."""
        return self.param("colour", nn.initializers.zeros, (3,), jnp.float32)


class ColourNet(nn.Module):
    """A colour from the embeddings of a caption."""

    dim: int = 8

    @nn.compact
    def __call__(self, embeds_BLD: Array, mask_BL: Array) -> Array:
        """(B, 3) float32, in no particular range."""
        weight_BL1 = mask_BL[..., None] / jnp.maximum(mask_BL.sum(-1)[:, None, None], 1)
        caption_BD = jnp.sum(embeds_BLD * weight_BL1, axis=1)
        init = nn.initializers.lecun_normal()
        hidden = self.param(
            "hidden", boxed(init, "embed", "mlp"), (embeds_BLD.shape[-1], self.dim), jnp.float32
        )
        out = self.param("out", boxed(init, "mlp", None), (self.dim, 3), jnp.float32)
        return jnp.tanh(caption_BD @ hidden) @ out
