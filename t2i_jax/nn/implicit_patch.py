"""The pixels of a patch as a function of the position within it: the NeRF-like output of ViTGAN."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.conv import Dense
from t2i_jax.types import Array


class ImplicitPatch(nn.Module):
    """A patch's pixels from its features: an MLP of two hidden layers that reads, for each pixel,
    the features of the patch and Fourier features of the pixel's place in the patch.

    That is the output of ViTGAN (Lee et al. 2021, arXiv 2107.04589, equation 12), with fixed
    frequencies in place of learnt ones (Mildenhall et al. 2020, equation 4), and without the
    modulated layers around it. The parameters do not depend on `patch_size`.

    Attributes:
      channels: of the image. patch_size: pixels per side of a patch. dim: width of the hidden
        layers.
      octaves: frequencies of the Fourier features: pi, 2 pi, 4 pi, ... per half side of a patch.
      dtype: of the computation.
    """

    channels: int
    patch_size: int
    dim: int
    octaves: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features_BHWC: Array) -> Array:
        """(B, H, W, patch_size^2 * channels), as `unpatchify` takes it: row by row, the channels
        fastest.
        """
        hidden = ("mlp", None)
        from_patch = Dense(self.dim, hidden, dtype=self.dtype, name="from_features")(features_BHWC)
        # One product with the concatenation of both, taken apart: the pixels of a patch share its
        # features, and all patches share the positions.
        places_PF = jnp.asarray(fourier(self.patch_size, self.octaves), self.dtype)
        from_place = Dense(
            self.dim, (None, None), bias=False, dtype=self.dtype, name="from_position"
        )(places_PF)
        x_BHWPM = gelu(from_patch[..., None, :] + from_place)
        x_BHWPM = gelu(Dense(self.dim, (None, None), dtype=self.dtype, name="hidden")(x_BHWPM))
        pixels = Dense(self.channels, (None, None), dtype=self.dtype, name="to_channels")(x_BHWPM)
        return rearrange(pixels, "b h w p c -> b h w (p c)")


def fourier(side: int, octaves: int) -> np.ndarray:
    """(side^2, 4 octaves + 2) float32: the position (row, column) of each pixel's centre in a
    square, row by row, from -1 to 1 between the edges, and sines and cosines of 2^i pi times it.
    """
    centres = (np.arange(side) + 0.5) / side * 2 - 1
    position_P2 = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    angles_PA = (position_P2[:, None] * (2.0 ** np.arange(octaves) * np.pi)[:, None]).reshape(
        len(position_P2), -1
    )
    parts = [position_P2, np.sin(angles_PA), np.cos(angles_PA)]
    return np.concatenate(parts, axis=-1).astype(np.float32)
