"""The patch discriminator of parti-pytorch: a stem of three kernel sizes, then strided convolutions
with residuals.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.nn import limits
from t2i_jax.nn.conv import conv
from t2i_jax.nn.group_norm import group_norm
from t2i_jax.types import Array

_KERNELS = (3, 7, 15)


class Patchwise(nn.Module):
    """A discriminator with stride-2 layers that are normalised by group and a 4x4 window at the
    end: the part that does not depend on what is between.

    A subclass has the fields `dims`, the width at first and after each stride-2 layer, and
    `groups`.
    """

    def __post_init__(self):
        limits.check(self)
        for dim in self.dims[1:]:
            if dim % self.groups:
                raise UserError(
                    f"dims={self.dims} has {dim}, no multiple of groups={self.groups}; widen it."
                )
        super().__post_init__()

    @property
    def smallest_image(self) -> int:
        """The least side in pixels that leaves one logit."""
        return 4 * 2 ** (len(self.dims) - 1)

    def check(self, image_size: int) -> None:
        """Refuses images that are too small for this many layers."""
        if image_size < self.smallest_image:
            raise UserError(
                f"image_size={image_size} is too small for {len(self.dims) - 1} discriminator "
                f"layers (at least {self.smallest_image}); use fewer discr_layers."
            )


class Discriminator(Patchwise):
    """Logits (B, rows, columns) per patch, high for real images.

    Attributes:
      dims: width after the stem and after each stride-2 layer; all but the first are multiples of
        `groups`.
      channels: of the images.
      groups: of the group norms.
      dtype: of the computation.
    """

    dims: tuple[int, ...]
    channels: int = 3
    groups: int = 8
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        """Logits for float images."""
        x = image_BHWC.astype(self.dtype)
        widths = [self.dims[0] // 2, self.dims[0] // 4]
        widths.append(self.dims[0] - sum(widths))
        stem = [
            conv(w, k, f"stem_{k}", dtype=self.dtype)(x)
            for k, w in zip(_KERNELS, widths, strict=True)
        ]
        x = _leaky(jnp.concatenate(stem, axis=-1))
        for i, dim in enumerate(self.dims[1:]):
            x = _leaky(conv(dim, 4, f"down_{i}", stride=2, dtype=self.dtype)(x))
            x = group_norm(self.groups, f"norm_{i}", self.dtype)(x)
            x = x + conv(dim, 3, f"block_{i}", dtype=self.dtype)(
                _leaky(group_norm(self.groups, f"block_norm_{i}", self.dtype)(x))
            )
        x = _leaky(conv(self.dims[-1], 1, "to_logits_0", dtype=self.dtype)(x))
        return conv(1, 4, "to_logits_1", padding=0, dtype=self.dtype)(x)[..., 0].astype(jnp.float32)


def _leaky(x):
    return nn.leaky_relu(x, 0.1)
