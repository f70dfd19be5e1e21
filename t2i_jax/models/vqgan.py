"""The convolutional image tokenizer of muse-maskgit-pytorch 0.3.5, weight for weight: strided
convolutions and residual blocks around LFQ or a cosine VQ.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.lfq_or_vq import ALIASES, LfqOrVq
from t2i_jax.models.patch_discriminator import PatchDiscriminator
from t2i_jax.nn import limits, quantize
from t2i_jax.nn.conv import POINTWISE, Dense, Upconv, conv
from t2i_jax.nn.group_norm import group_norm
from t2i_jax.nn.transformer import REMAT
from t2i_jax.types import Array
from t2i_jax.values import Signed

_ALIASES = {
    **{
        f"encdec_{name}": name
        for name in ("layer_mults", "num_resnet_blocks", "resnet_groups", "first_conv_kernel_size")
    },
    **ALIASES,
}


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each normalised by group and activated by a leaky ReLU, and a 1x1 one;
    added to the input.
    """

    groups: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The feature map, same shape."""
        y, width = x_BHWC, x_BHWC.shape[-1]
        for i in range(2):
            y = conv(width, 3, f"conv_{i}", dtype=self.dtype)(y)
            y = _leaky(group_norm(self.groups, f"norm_{i}", self.dtype)(y))
        return x_BHWC + Dense(width, POINTWISE, dtype=self.dtype, name="out")(y)


class GLUResBlock(nn.Module):
    """A `ResBlock` whose convolutions are gated: half of their channels times the sigmoid of the
    other half.
    """

    groups: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The feature map, same shape."""
        y, width = x_BHWC, x_BHWC.shape[-1]
        for i in range(2):
            value, gate = jnp.split(
                conv(2 * width, 3, f"conv_{i}", dtype=self.dtype)(y), 2, axis=-1
            )
            y = group_norm(self.groups, f"norm_{i}", self.dtype)(value * nn.sigmoid(gate))
        return x_BHWC + Dense(width, POINTWISE, dtype=self.dtype, name="out")(y)


class Encoder(nn.Module):
    """A convolution, then per level a stride-2 convolution and residual blocks.

    Attributes:
      dim: width of the first convolution. dims: width of each level. blocks: residual blocks of
        each level.
    """

    dim: int
    dims: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: int
    first_kernel: int
    remat: str
    dtype: str

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        """The feature map (B, rows, columns, dims[-1])."""
        block = _rematted(ResBlock, self.remat)
        x = conv(self.dim, self.first_kernel, "first", dtype=self.dtype)(image_BHWC)
        for i, (dim, count) in enumerate(zip(self.dims, self.blocks, strict=True)):
            x = _leaky(conv(dim, 4, f"down_{i}", stride=2, dtype=self.dtype)(x))
            for j in range(count):
                x = block(self.groups, self.dtype, name=f"block_{i}_{j}")(x)
        return x


class Decoder(nn.Module):
    """The levels of an `Encoder` backwards: residual blocks, then a transposed convolution.

    Attributes: as those of `Encoder`.
    """

    dim: int
    dims: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: int
    remat: str
    dtype: str

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The feature map (B, image height, image width, dim)."""
        block, x = _rematted(GLUResBlock, self.remat), x_BHWC
        widths = (self.dim, *self.dims[:-1])
        for i in reversed(range(len(self.dims))):
            for j in range(self.blocks[i]):
                x = block(self.groups, self.dtype, name=f"block_{i}_{j}")(x)
            x = _leaky(Upconv(widths[i], self.dtype, name=f"up_{i}")(x))
        return x


class _Network(LfqOrVq):
    """A `VQGanVAE` that takes its fields by their own names alone."""

    dim: int
    image_size: int = 256
    channels: int = 3
    layers: int = 4
    layer_mults: tuple[int, ...] | None = None
    num_resnet_blocks: int | tuple[int, ...] = 1
    resnet_groups: int = 16
    first_conv_kernel_size: int = 5
    lookup_free_quantization: bool = True
    codebook_size: int = 65536
    entropy_loss_weight: float = 0.1
    diversity_gamma: float = 4.0
    commitment_weight: float | None = None
    codebook_dim: int = 256
    decay: float = 0.8
    kmeans_init: bool = True
    discr_layers: int = 4
    pixel_range: tuple[Signed, Signed] = (0.0, 1.0)
    remat: str = "none"
    dtype: str = "float32"
    rotation_trick: bool = False
    fsq_levels: tuple[int, ...] | None = None

    def __post_init__(self):
        limits.check(self)
        if self.layers < 1:
            raise UserError(f"layers={self.layers} is not positive; give 1 or more.")
        image_tokenizer.check_sizes(self, "dim", "resnet_groups", "first_conv_kernel_size")
        config.one_of("remat", self.remat, REMAT)
        for field in ("layer_mults", "num_resnet_blocks"):
            value = getattr(self, field)
            if isinstance(value, (tuple, list)) and len(value) != self.layers:
                raise UserError(
                    f"{field}={tuple(value)} has {len(value)} entries for layers={self.layers}; "
                    "give one for each layer."
                )
        if self.first_conv_kernel_size % 2 == 0:
            raise UserError(
                f"first_conv_kernel_size={self.first_conv_kernel_size} is even, which changes the "
                f"image's size; try {self.first_conv_kernel_size + 1}."
            )
        for width, blocks in zip(self.dims, self.blocks, strict=True):
            if blocks and width % self.resnet_groups:
                raise UserError(
                    f"dim={self.dim} makes a layer of width {width}, no multiple of "
                    f"resnet_groups={self.resnet_groups}; try dim="
                    f"{-(-self.dim // self.resnet_groups) * self.resnet_groups}, or other "
                    "resnet_groups (for weights, those that they were trained with)."
                )
        super().__post_init__()

    @property
    def patch_size(self) -> int:
        """Pixels per side of a token."""
        return 2**self.layers

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each level."""
        mults = self.layer_mults or tuple(2**i for i in range(self.layers))
        return tuple(self.dim * mult for mult in mults)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level; one number stands for the last level."""
        if isinstance(self.num_resnet_blocks, int):
            return (*(0,) * (self.layers - 1), self.num_resnet_blocks)
        return tuple(self.num_resnet_blocks)

    @nn.nowrap
    def discriminator(self) -> PatchDiscriminator:
        """The discriminator that the package trains this network against."""
        return PatchDiscriminator(
            self.discriminator_dims, self.channels, dtype=self.dtype, parent=None
        )

    def setup(self):
        """Makes the layers and parameters."""
        common = (self.dim, self.dims, self.blocks, self.resnet_groups)
        self.encoder = Encoder(*common, self.first_conv_kernel_size, self.remat, self.dtype)
        self.quantizer = self.make_quantizer(self.dims[-1])
        self.decoder = Decoder(*common, self.remat, self.dtype)
        self.to_pixels = Dense(self.channels, POINTWISE, dtype=self.dtype)

    def encoder_fmap(self, image_BHWC: Array) -> Array:
        """The feature map (B, rows, columns, dims[-1]) before quantisation."""
        return self.encoder(image_BHWC.astype(self.dtype))

    def features(self, fmap_BHWC: Array) -> Array:
        """The feature map that the last layer turns into pixels."""
        return self.decoder(fmap_BHWC)

    def pixels(self, features_BHWC: Array) -> Array:
        """Float32 images from `features`."""
        return self.to_pixels(features_BHWC).astype(jnp.float32)


class VQGanVAE(_Network):
    """The convolutional VQGAN of muse-maskgit-pytorch 0.3.5.

        vae = VQGanVAE(dim=256, image_size=256, codebook_size=512)

    It is fully convolutional: `vae.clone(image_size=512)` is the same network, with the same
    weights, for larger images. Weights that come from the package use `pixel_range=(0.0, 1.0)`,
    which is why that is the default here.

    Attributes:
      dim: width of the first convolution. image_size: side in pixels, a multiple of 2**layers.
        channels: of the images.
      layers: levels, each of which halves the sides. layer_mults: width of each level over `dim`;
        None for 1, 2, 4, ...
      num_resnet_blocks: residual blocks of each level; a number: of the last level alone.
      resnet_groups: of the group norms; it divides the width of each level with residual blocks.
        first_conv_kernel_size: side of the first window, odd.
      lookup_free_quantization: LFQ; False for the codebook on the unit sphere of the package's
        first releases.
      codebook_size: number of codes; for LFQ a power of 2.
      entropy_loss_weight, diversity_gamma: loss weights of LFQ. commitment_weight: None for 0 with
        LFQ (as the package with the current quantiser library; 0.25 with those of its day) and 1
        otherwise.
      fsq_levels: the values of each channel of FSQ, which takes the place of LFQ and has no losses;
        `codebook_size` is then their product and need not be given. None: no FSQ.
      codebook_dim, decay, kmeans_init: width, decay and initialisation of the codebook that is not
        look-up free.
      rotation_trick: the gradient is turned where it goes through that codebook
        (`quantize.rotated`); False: it passes straight through.
      discr_layers: layers of `discriminator()`. pixel_range: lowest and highest value of the float
        images.
      remat: remat policy of the residual blocks: "none", "full" (recomputes all), or "dots".
      dtype: of the computation.
    """

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Takes the fields also by the prefixes of the package ("vq_codebook_size",
        "encdec_layer_mults").

        Raises:
          UserError: an unknown field, or one that is given under two names.
        """
        config.take_aliases(VQGanVAE, fields, _ALIASES)
        super().__init__(*args, **quantize.sized(fields))


def _rematted(block: Any, policy: str) -> Any:
    return block if REMAT[policy] is None else nn.remat(block, policy=REMAT[policy])


def _leaky(x):
    return nn.leaky_relu(x, 0.1)
