"""VGG16 (Simonyan & Zisserman 2014) as a perceptual loss; its weights come from a file of the
user.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.nn import limits
from t2i_jax.nn.parameter import parameter
from t2i_jax.types import Array

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for images in [0, 1]
# Mean and standard deviation for images in [-1, 1], as LPIPS has them.
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Vgg16(nn.Module):
    """A perceptual distance between images in [0, 1]: `(real, fake) -> scalar`, mean over the
    batch.

    Attributes:
      features: "fc2": mean squared difference of the 4096 activations before the classifier, as
        parti-pytorch (which leaves out the normalisation of ImageNet: `normalize=False`) takes it;
        "stages": mean squared difference of the unit-length activations at the end of each of the
        five stages; "lpips": these weighted per channel by learnt weights (Zhang et al. 2018).
      normalize: subtract ImageNet's mean and divide by its deviation first ("lpips" has its own
        constants).
      dtype: of the computation.
    """

    features: str = "stages"
    normalize: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        limits.check(self)
        config.one_of("features", self.features, ("fc2", "stages", "lpips"))
        super().__post_init__()

    @nn.compact
    def __call__(self, real_BHWC: Array, fake_BHWC: Array) -> Array:
        """The distance; images of one channel are repeated to three."""
        both = jnp.concatenate([real_BHWC, fake_BHWC])  # one pass through the network
        both = jnp.broadcast_to(both, (*both.shape[:3], 3))
        if self.features == "lpips":
            both = (2 * both - 1 - jnp.array(LPIPS_SHIFT)) / jnp.array(LPIPS_SCALE)
        elif self.normalize:
            both = (both - jnp.array(_MEAN)) / jnp.array(_STD)
        maps = stages(both, self.dtype)
        if self.features == "fc2":
            x = maps[-1]
            x = _pooled(nn.max_pool(x, (2, 2), (2, 2)), 7).reshape(x.shape[0], -1)
            for i in range(2):
                x = nn.relu(nn.Dense(4096, dtype=self.dtype, name=f"fc_{i}")(x))
            return _apart(x)
        total = jnp.float32(0)
        for i, x in enumerate(maps):
            x = x.astype(jnp.float32)
            x = x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)) + 1e-10)
            if self.features == "lpips":
                weight = parameter(
                    self, f"lin_{i}", nn.initializers.ones, (x.shape[-1],), jnp.float32
                )
                # The mean over channels below becomes a sum.
                x = x * jnp.sqrt(jnp.maximum(weight, 0.0)) * jnp.sqrt(jnp.float32(x.shape[-1]))
            total += _apart(x)
        return total


def stages(x_BHWC: Array, dtype: str = "float32") -> list[Array]:
    """The activations at the end of each stage, within a compact method, whose module gets the
    parameters "conv_{stage}_{layer}".
    """
    x, maps = x_BHWC.astype(dtype), []
    for i, widths in enumerate(STAGES):
        x = nn.max_pool(x, (2, 2), (2, 2)) if i else x
        for j, width in enumerate(widths):
            x = nn.relu(nn.Conv(width, (3, 3), padding=1, dtype=dtype, name=f"conv_{i}_{j}")(x))
        maps.append(x)
    return maps


def _apart(both):
    """Mean squared difference of the two halves of a batch."""
    real, fake = jnp.split(both.astype(jnp.float32), 2)
    return jnp.mean((real - fake) ** 2)


def _pooled(x_BHWC, size):
    """Adaptive average pooling to size x size, bins as PyTorch's: from floor(i n / size) to ceil((i
    + 1) n / size).
    """
    for axis in (1, 2):
        n = x_BHWC.shape[axis]
        bins = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        parts = [
            jnp.mean(jax.lax.slice_in_dim(x_BHWC, a, b, axis=axis), axis=axis, keepdims=True)
            for a, b in bins
        ]
        x_BHWC = jnp.concatenate(parts, axis=axis)
    return x_BHWC
