"""LPIPS v0.1 (Zhang et al. 2018): how far apart two images look, by the features of a network for
classification, weighted by what people answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import vgg
from t2i_jax.nn.parameter import parameter
from t2i_jax.types import Array

# The convolutions of AlexNet (Krizhevsky 2014), as torchvision has it: width, kernel, stride,
# padding, and whether a max pool of 3x3 comes before.
ALEXNET = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)
_EPSILON = 1e-10  # added to lengths; torchmetrics adds 1e-8 to their squares
_SMALLEST = {"alex": 32, "vgg": 16}  # pixels a side, for one activation at the end


def alexnet(x_BHWC: Array) -> list[Array]:
    """The activations after each of the five convolutions, within a compact method, whose module
    gets the parameters "conv_{layer}".
    """
    x, maps = x_BHWC, []
    for i, (width, side, stride, padding, pooled) in enumerate(ALEXNET):
        x = nn.max_pool(x, (3, 3), (2, 2)) if pooled else x
        x = nn.relu(nn.Conv(width, (side, side), stride, padding=padding, name=f"conv_{i}")(x))
        maps.append(x)
    return maps


TRUNKS: Mapping[str, Callable[[Array], list[Array]]] = {"alex": alexnet, "vgg": vgg.stages}
WIDTHS = {
    "alex": tuple(width for width, *_ in ALEXNET),
    "vgg": tuple(widths[-1] for widths in vgg.STAGES),
}


class Lpips(nn.Module):
    """`(one, other) -> (B,)` float32, 0 for two equal images and larger the more they differ.

    For each layer the squared difference of the activations, divided by their length, is weighted
    per channel and averaged over the image; the sum over the layers.

    Attributes:
      trunk: "alex", by which results are reported, or "vgg", with which networks are trained.
    """

    trunk: str = "alex"

    def __post_init__(self):
        config.one_of("trunk", self.trunk, TRUNKS)
        super().__post_init__()

    @nn.compact
    def __call__(self, one_BHWC: Array, other_BHWC: Array) -> Array:
        """The distances of float images in [-1, 1] of one size."""
        if one_BHWC.shape != other_BHWC.shape or min(one_BHWC.shape[1:3]) < _SMALLEST[self.trunk]:
            raise UserError(
                f"images of the shapes {one_BHWC.shape} and {other_BHWC.shape} can't be compared; "
                f"give pairs of one size, {_SMALLEST[self.trunk]} pixels a side or more."
            )
        both = jnp.concatenate([one_BHWC, other_BHWC]).astype(jnp.float32)
        both = (both - jnp.array(vgg.LPIPS_SHIFT)) / jnp.array(vgg.LPIPS_SCALE)
        total_B = jnp.zeros(len(one_BHWC), jnp.float32)
        for i, x in enumerate(TRUNKS[self.trunk](both)):
            x = x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)) + _EPSILON)
            one, other = jnp.split(x, 2)
            weight_C = parameter(self, f"lin_{i}", nn.initializers.ones, (x.shape[-1],))
            total_B += jnp.mean(jnp.sum((one - other) ** 2 * weight_C, axis=-1), axis=(1, 2))
        return total_B
