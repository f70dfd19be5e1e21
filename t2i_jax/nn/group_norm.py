"""Group norm (Wu and He 2018)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.nn.conv import boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.types import Array


class GroupNorm(nn.Module):
    """Group norm with a scale and a shift per channel, as PyTorch's `GroupNorm`; statistics in
    float32.

    Attributes:
      groups: equal groups of neighbouring channels. dtype: of the result.
      epsilon: is added to the variance.
    """

    groups: int
    dtype: str = "float32"
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The normalised feature map, of the same shape."""
        channels = x_BHWC.shape[-1]
        scale_C, bias_C = (
            parameter(self, name, boxed(init, "conv_out"), (channels,), jnp.float32)
            for name, init in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )
        x_BHWC = x_BHWC.astype(jnp.float32)
        apart_BHWC = x_BHWC - _spread(_means(x_BHWC, self.groups), channels)
        variance_BG = _means(apart_BHWC * apart_BHWC, self.groups)
        inverse_B11C = _spread(jax.lax.rsqrt(variance_BG + self.epsilon), channels)
        return (apart_BHWC * (inverse_B11C * scale_C) + bias_C).astype(self.dtype)


def group_norm(groups: int, name: str, dtype="float32", epsilon: float = 1e-5) -> GroupNorm:
    """A `GroupNorm` of this name."""
    return GroupNorm(groups, dtype, epsilon, name=name)


def _means(x_BHWC, groups):
    """The means of groups (B, G)."""
    B, C = x_BHWC.shape[0], x_BHWC.shape[-1]
    means_BC = x_BHWC.reshape(B, -1, C).mean(axis=1)
    return means_BC.reshape(B, groups, -1).mean(axis=-1)


def _spread(values_BG, channels):
    """For each channel the number of its group (B, 1, 1, C).

    On a CPU it is made by a product, which XLA computes before the feature map is read. It would
    else look up the group of each channel within the loop over the map, and that one would take
    several times as long, since it could not do with several numbers at a time.
    """
    spread_BC = jax.lax.platform_dependent(
        values_BG,
        cpu=lambda values_BG: values_BG @ _members(values_BG.shape[1], channels),
        default=lambda values_BG: jnp.repeat(values_BG, channels // values_BG.shape[1], axis=1),
    )
    return spread_BC[:, None, None]


def _members(groups, channels):
    """(G, C), 1 where a channel is of a group."""
    return np.repeat(np.eye(groups, dtype=np.float32), channels // groups, axis=1)
