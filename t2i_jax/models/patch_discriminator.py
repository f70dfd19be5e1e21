"""The patch discriminator of muse-maskgit-pytorch: strided convolutions with group norms."""

from __future__ import annotations

import flax.linen as nn

from t2i_jax.models.discriminator import Patchwise
from t2i_jax.nn.conv import conv
from t2i_jax.nn.group_norm import group_norm
from t2i_jax.types import Array


class PatchDiscriminator(Patchwise):
    """Logits (B, rows, columns) per patch, high for real images.

    Attributes:
      dims: width after the first convolution and after each stride-2 layer; all but the first are
        multiples of `groups`.
      channels: of the images. groups: of the group norms. first_kernel: side of the first window.
      dtype: of the computation.
    """

    dims: tuple[int, ...]
    channels: int = 3
    groups: int = 16
    first_kernel: int = 5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        """Logits for float images."""
        x = _leaky(conv(self.dims[0], self.first_kernel, "first", dtype=self.dtype)(image_BHWC))
        for i, dim in enumerate(self.dims[1:]):
            x = conv(dim, 4, f"down_{i}", stride=2, dtype=self.dtype)(x)
            x = _leaky(group_norm(self.groups, f"norm_{i}", self.dtype)(x))
        x = _leaky(conv(self.dims[-1], 1, "to_logits_0", dtype=self.dtype)(x))
        logits = conv(1, 4, "to_logits_1", padding=0, dtype=self.dtype)(x)
        return logits[..., 0].astype("float32")


def _leaky(x):
    return nn.leaky_relu(x, 0.1)
