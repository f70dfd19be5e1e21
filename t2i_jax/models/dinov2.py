"""DINOv2 (Oquab et al. 2023), a vision transformer whose class token is compared in FD-DINOv2."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.nn import limits
from t2i_jax.nn.conv import Dense, patchify
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.residual_attention import ResidualAttentionLayer, biased_norm
from t2i_jax.nn.transformer import scanned
from t2i_jax.types import Array

_HEAD = 64  # channels
_CUBIC = -0.75  # parameter a of the cubic filter, as PyTorch has it
# Offsets that are added to the number of patches before it is divided by that of the positions.
OFFSETS = {"size": 0.0, "offset": 0.1}


class Dinov2(nn.Module):
    """Class token after the last norm, (B, width) float32, of pixels normalised by ImageNet's mean
    and deviation.

    Attributes:
      width, depth, heads: of the transformer; heads None: one per 64 of the width, as in all
        published networks. mlp_dim: hidden width of its MLPs.
      patch_size: pixels per side. grid: patches per side of the images whose positions were learnt.
      gated: MLPs of SwiGLU, as the largest of the published networks has them.
      positions: how positions are interpolated for images of another size: "size", to the number of
        patches, as transformers does it; "offset", by (patches + 0.1) / grid, as Meta's code and
        dgm-eval do it (a tenth of a patch at the far edge).
      epsilon: of the norms.
    """

    width: int = 1024
    depth: int = 24
    heads: int | None = None
    mlp_dim: int = 4096
    patch_size: int = 14
    grid: int = 37
    gated: bool = False
    positions: str = "size"
    epsilon: float = 1e-6

    def __post_init__(self):
        limits.check(self)
        config.one_of("positions", self.positions, OFFSETS)
        if self._heads < 1 or self.width % self._heads:
            raise UserError(f"heads={self.heads} does not divide the width {self.width}; try 1.")
        super().__post_init__()

    @property
    def _heads(self):
        return max(self.width // _HEAD, 1) if self.heads is None else self.heads

    @nn.compact
    def __call__(self, pixels_BHWC: Array) -> Array:
        """The class token; images have a multiple of `patch_size` pixels a side."""
        batch, height, width, _ = pixels_BHWC.shape
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"images of {height}x{width} pixels are no multiple of patch_size="
                f"{self.patch_size}; give 224x224."
            )
        x_BNP = patchify(pixels_BHWC.astype(jnp.float32), self.patch_size)
        shape = x_BNP.shape[1:3]
        x_BNC = Dense(self.width, ("patch", "embed"), bias=True, name="to_tokens")(
            x_BNP.reshape(batch, -1, x_BNP.shape[-1])
        )
        normal = nn.initializers.normal(0.02)
        cls_C = parameter(self, "cls", normal, (self.width,))
        positions_NC = parameter(self, "positions", normal, (1 + self.grid**2, self.width))
        x_BNC = x_BNC + self._positions(positions_NC[1:], shape)
        cls_B1C = jnp.broadcast_to(cls_C + positions_NC[0], (batch, 1, self.width))
        x_BNC = jnp.concatenate([cls_B1C, x_BNC], axis=1)
        layers = scanned(_Layer, self.depth, "none", inputs=2)
        x_BNC, _ = layers(
            dim=self.width, depth=self.depth, heads=self._heads, mlp_dim=self.mlp_dim,
            activation="gelu", epsilon=self.epsilon, gated=self.gated, name="layers",
        )(x_BNC, None, True)  # fmt: skip
        return biased_norm("norm", epsilon=self.epsilon)(x_BNC[:, 0])

    def _positions(self, positions_NC, shape):
        grid_HWC = positions_NC.reshape(self.grid, self.grid, self.width)
        if shape != (self.grid, self.grid):
            rows, columns = (
                cubic(self.grid, n, (n + OFFSETS[self.positions]) / self.grid) for n in shape
            )
            grid_HWC = jnp.einsum("ph,qw,hwc->pqc", rows, columns, grid_HWC, precision="highest")
        return grid_HWC.reshape(-1, self.width)


class _Layer(ResidualAttentionLayer):
    """A layer whose two outputs are scaled per channel by learnt numbers (Touvron et al. 2021).

    Attributes:
      gated: the MLP is w (silu(g) * u), with g and u one after the other in "wide".
    """

    gated: bool = False

    @nn.compact
    def __call__(
        self, x_BNC: Array, mask_BN: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, None]:
        """(x, None): the pair that a scan wants."""
        ones = nn.initializers.ones
        scale_C = parameter(self, "scale_attention", ones, (self.dim,))
        x_BNC = x_BNC + scale_C * self._attention(x_BNC, mask_BN)
        scale_C = parameter(self, "scale_mlp", ones, (self.dim,))
        mlp = self._gated_mlp if self.gated else self._mlp
        return x_BNC + scale_C * mlp(x_BNC), None

    def _gated_mlp(self, x_BNC):
        x_BNC = biased_norm("norm_mlp", self.dtype, self.epsilon)(x_BNC)
        both = self._dense(2 * self.mlp_dim, "wide", ("embed", "mlp"), 0.02)(x_BNC)
        gate, up = jnp.split(both, 2, axis=-1)
        return self._dense(self.dim, "narrow", ("mlp", "embed"), 0.02)(nn.silu(gate) * up)


def cubic(n: int, size: int, scale: float) -> np.ndarray:
    """The weights (size, n) of a cubic interpolation from n values to `size`, float32, at
    `(i + 1/2) / scale - 1/2` and without antialiasing, as PyTorch has it; beyond the ends are the
    values of the ends.
    """
    at = (np.arange(size) + 0.5) / scale - 0.5
    first = np.floor(at).astype(int) - 1
    weights = np.zeros((size, n))
    for tap in range(4):
        distance = np.abs(at - (first + tap))
        np.add.at(
            weights,
            (np.arange(size), np.clip(first + tap, 0, n - 1)),
            np.where(distance <= 1, _inner(distance), _outer(distance)),
        )
    return weights.astype(np.float32)


def _inner(d):
    return ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1


def _outer(d):
    return _CUBIC * (((d - 5) * d + 8) * d - 4)
