"""The image tokenizer of parti-pytorch 0.2.0, weight for weight: a convolutional ViT around LFQ or
a cosine VQ.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.discriminator import Discriminator
from t2i_jax.models.lfq_or_vq import ALIASES, LfqOrVq
from t2i_jax.nn import limits, quantize
from t2i_jax.nn.activation import gelu
from t2i_jax.nn.conv import (
    Dense,
    Depthwise,
    boxed,
    channel_norm,
    neighbours,
    patchify,
    uniform_fan_in,
    unpatchify,
)
from t2i_jax.nn.dot_product import attention
from t2i_jax.nn.implicit_patch import ImplicitPatch
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.row_sums import add_to_all
from t2i_jax.nn.transformer import REMAT
from t2i_jax.types import Array
from t2i_jax.values import Signed

# The path of the kernel that makes the pixels, within "to_pixels", by `pixel_head`.
_LAST_KERNEL = {"linear": ("kernel",), "implicit": ("to_channels", "kernel")}
_ALIASES = {
    "num_layers": "layers",
    **{f"encdec_{name}": name for name in ("patch_size", "dim_head", "heads", "ff_mult")},
    **ALIASES,
}


class Attention(nn.Module):
    """Self-attention over a feature map, with depthwise convolutions on q, k, v and a learnt bias
    per relative position.
    """

    dim: int
    heads: int
    dim_head: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The update of the feature map; (B, H, W, dim), H = W."""
        batch, size, inner = x_BHWC.shape[0], x_BHWC.shape[1], self.heads * self.dim_head
        qkv = Dense(3 * inner, ("embed", "heads"), name="to_qkv", bias=False, dtype=self.dtype)(
            channel_norm("norm", self.dtype)(x_BHWC)
        )
        q, k, v = (
            Depthwise(inner, "heads", self.dtype, name=f"{name}_conv")(t).reshape(
                batch, size**2, self.heads, -1
            )
            for name, t in zip("qkv", jnp.split(qkv, 3, axis=-1), strict=True)
        )
        bias = parameter(
            self,
            "bias",
            boxed(nn.initializers.normal(1.0), None, "heads"),
            ((2 * size - 1) ** 2, self.heads),
        )
        out = attention(q, k, v, bias_HQK=_spread(bias, size)).reshape(batch, size, size, inner)
        return Dense(self.dim, ("heads", "embed"), name="to_out", bias=False, dtype=self.dtype)(out)


class FeedForward(nn.Module):
    """Norm, widen, GELU, depthwise convolution, narrow."""

    dim: int
    mult: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The update of the feature map."""
        hidden = self.dim * self.mult
        x = channel_norm("norm", self.dtype)(x_BHWC)
        x = gelu(Dense(hidden, ("embed", "mlp"), name="wide", bias=False, dtype=self.dtype)(x))
        x = Depthwise(hidden, "mlp", self.dtype, name="conv")(x)
        return Dense(self.dim, ("mlp", "embed"), name="narrow", bias=False, dtype=self.dtype)(x)


class Transformer(nn.Module):
    """Layers of positional convolution, attention and feed-forward, each with a residual; a norm at
    the end.
    """

    dim: int
    layers: int
    heads: int
    dim_head: int
    ff_mult: int
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The transformed feature map, same shape."""
        x = x_BHWC
        attention: Any = Attention
        feed_forward: Any = FeedForward
        if self.remat != "none":
            attention = nn.remat(Attention, policy=REMAT[self.remat])
            feed_forward = nn.remat(FeedForward, policy=REMAT[self.remat])
        for i in range(self.layers):
            x = x + Depthwise(self.dim, "embed", self.dtype, name=f"peg_{i}")(x)
            x = x + attention(
                self.dim, self.heads, self.dim_head, self.dtype, name=f"attention_{i}"
            )(x)
            x = x + feed_forward(self.dim, self.ff_mult, self.dtype, name=f"mlp_{i}")(x)
        return channel_norm("norm", self.dtype)(x)


class PositionedConv(nn.Module):
    """A 3x3 convolution of a feature map and fixed positions, as many channels of each, without a
    bias.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, H, W, features); the share of the positions is the same for every image and computed
        once.
        """
        height, width, dim = x_BHWC.shape[1:]
        init = boxed(uniform_fan_in, None, None, "conv_in", "conv_out")
        kernel = parameter(
            self, "kernel", init, (3, 3, 2 * dim, self.features), jnp.float32
        ).astype(self.dtype)
        of_map, of_positions = jnp.split(kernel, 2, axis=2)
        x = neighbours(x_BHWC).reshape(-1, 9 * dim) @ of_map.reshape(9 * dim, self.features)
        return add_to_all(
            x.reshape(-1, height, width, self.features), _convolved_positions(of_positions, height)
        )


class _Network(LfqOrVq):
    """A `VitVQGanVAE` that takes its fields by their own names alone."""

    dim: int
    image_size: int
    channels: int = 3
    layers: int = 4
    patch_size: int = 16
    dim_head: int = 32
    heads: int = 8
    ff_mult: int = 4
    lookup_free_quantization: bool = True
    codebook_size: int = 65536
    entropy_loss_weight: float = 0.1
    diversity_gamma: float = 2.0
    commitment_weight: float | None = None
    codebook_dim: int = 64
    decay: float = 0.9
    kmeans_init: bool = True
    discr_layers: int = 4
    pixel_range: tuple[Signed, Signed] = (0.0, 1.0)
    remat: str = "dots"
    dtype: str = "float32"
    rotation_trick: bool = False
    fsq_levels: tuple[int, ...] | None = None
    pixel_head: str = "linear"
    pixel_head_dim: int = 32

    def __post_init__(self):
        limits.check(self)
        image_tokenizer.check_sizes(self, "dim", "pixel_head_dim")
        config.one_of("pixel_head", self.pixel_head, _LAST_KERNEL)
        config.one_of("remat", self.remat, REMAT)
        if self.dim % 4:
            raise UserError(f"dim={self.dim} is not a multiple of 4; try {self.dim // 4 * 4 + 4}.")
        super().__post_init__()

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the kernel that makes the pixels."""
        return ("to_pixels", *_LAST_KERNEL[self.pixel_head])

    @nn.nowrap
    def discriminator(self) -> Discriminator:
        """The discriminator that the package trains this network against."""
        return Discriminator(self.discriminator_dims, self.channels, dtype=self.dtype, parent=None)

    def setup(self):
        """Makes the layers and parameters."""
        shape = {
            n: getattr(self, n)
            for n in ("dim", "layers", "heads", "dim_head", "ff_mult", "remat", "dtype")
        }
        self.patch_norm = channel_norm(None, self.dtype)
        self.to_tokens = Dense(self.dim, ("patch", "embed"), dtype=self.dtype)
        self.encoder = Transformer(**shape)
        self.quantizer = self.make_quantizer(self.dim)
        self.decoder = Transformer(**shape)
        self.widen = PositionedConv(4 * self.dim, self.dtype)
        self.to_pixels = self._head()

    def encoder_fmap(self, image_BHWC: Array) -> Array:
        """The feature map (B, rows, columns, dim) before quantisation."""
        patches = patchify(_shifted(image_BHWC.astype(self.dtype)), self.patch_size)
        return self.encoder(self.to_tokens(self.patch_norm(patches)))

    def features(self, fmap_BHWC: Array) -> Array:
        """The feature map that the last layer turns into pixels."""
        return jnp.tanh(self.widen(self.decoder(fmap_BHWC)))

    def pixels(self, features_BHWC: Array) -> Array:
        """Float32 images from `features`."""
        return unpatchify(self.to_pixels(features_BHWC), self.patch_size).astype(jnp.float32)

    @nn.nowrap
    def _head(self):
        if self.pixel_head == "implicit":
            return ImplicitPatch(
                self.channels, self.patch_size, self.pixel_head_dim, dtype=self.dtype
            )
        outputs = self.channels * self.patch_size**2
        return Dense(outputs, ("mlp", "patch"), bias=False, dtype=self.dtype)


class VitVQGanVAE(_Network):
    """The ViT-VQGAN of parti-pytorch 0.2.0.

        vae = VitVQGanVAE(dim=256, image_size=256, patch_size=16, num_layers=3)

    Weights that come from the package use `pixel_range=(0.0, 1.0)`, which is why that is the
    default here.

    Attributes:
      dim: width, a multiple of 4. image_size: side in pixels; fixed, since the attention bias is a
        table. channels: of the images.
      layers: transformer layers in the encoder, and as many in the decoder (`num_layers` is
        accepted too).
      patch_size: pixels per side of a token (`encdec_patch_size` is accepted too).
      heads, dim_head, ff_mult: heads, their width, and how many times as wide the feed-forward is.
      lookup_free_quantization: LFQ; False for the codebook on the unit sphere of the package's
        first releases.
      codebook_size: number of codes; for LFQ a power of 2.
      entropy_loss_weight, diversity_gamma: loss weights of LFQ. commitment_weight: None for 0 with
        LFQ (as the package with the current quantiser library; 0.25 with those of its day) and 1
        otherwise.
      fsq_levels: the values of each channel of FSQ, which takes the place of LFQ and has no losses;
        `codebook_size` is then their product and need not be given. None: no FSQ.
      codebook_dim, decay, kmeans_init: width, decay and initialisation of the codebook that is not
        look-up free, by default as in the package's first releases; 0.2.0 declares the same and has
        `codebook_dim=dim, decay=0.8, kmeans_init=False`. rotation_trick: the gradient is turned
        where it goes through that codebook (`quantize.rotated`), as in the package with
        vector-quantize-pytorch from 1.15 on, instead of passing straight through.
      discr_layers: layers of `discriminator()`. pixel_range: lowest and highest value of the float
        images.
      remat: remat policy: "none", "full" (recomputes all), "attention" (keeps what the fused
        attention of a TPU gives), or "dots" (keeps matrix products too).
      dtype: of the computation.
      pixel_head: what makes the pixels of a token's features, "linear" as in the package; or
        "implicit", a small MLP per pixel that is told where in the patch the pixel is
        (`ImplicitPatch`). Its weights do not depend on the patch size:
        `vae.clone(image_size=3 * vae.image_size, patch_size=3 * vae.patch_size)` decodes the same
        tokens to images of three times the side.
      pixel_head_dim: width of that MLP.
    """

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Takes the fields also by the names of the package's README and by its prefixes
        ("num_layers", "vq_decay").

        Raises:
          UserError: an unknown field, or one that is given under two names.
        """
        config.take_aliases(VitVQGanVAE, fields, _ALIASES)
        super().__init__(*args, **quantize.sized(fields))


def _spread(bias_RH, size):
    """The bias (heads, N, N) from the table over (2 size - 1)^2 relative positions, as two rounds
    of slices.
    """
    wide = 2 * size - 1
    table = bias_RH.T.reshape(-1, wide, wide)  # [head, row difference, column difference]
    rows = jnp.arange(size)[:, None] - jnp.arange(size)[None, :] + size - 1
    spread = table[:, rows][:, :, :, rows]  # [head, query row, key row, query column, key column]
    return rearrange(spread, "h q k r c -> h (q r) (k c)")


def _shifted(image_BHWC):
    """The image and its four shifts by one pixel (right, left, down, up; zeros enter), along the
    channels.
    """
    rows, columns = image_BHWC.shape[1:3]
    padded = jnp.pad(image_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = ((1, 1), (1, 0), (1, 2), (0, 1), (2, 1))
    return jnp.concatenate([padded[:, i : i + rows, j : j + columns] for i, j in places], axis=-1)


def _convolved_positions(kernel_IJFO, size):
    """A 3x3 convolution of the positions (size, size, F): sines and cosines of the raw row, then of
    the raw column.

    Half of the channels differ between rows only, the others between columns only: `size` vectors
    of each are multiplied with the taps and shifted afterwards.
    """
    rates = jnp.exp(
        -jnp.arange(half := kernel_IJFO.shape[2] // 4) * (math.log(10_000.0) / max(half - 1, 1))
    )
    angles_NE = jnp.arange(size)[:, None] * rates
    vectors_NF = jnp.concatenate([jnp.sin(angles_NE), jnp.cos(angles_NE)], axis=-1).astype(
        kernel_IJFO.dtype
    )
    both = jnp.concatenate(
        [jnp.pad(vectors_NF, ((0, 0), (0, 2 * half))), jnp.pad(vectors_NF, ((0, 0), (2 * half, 0)))]
    )
    taps = kernel_IJFO.reshape(9, 4 * half, -1)
    products = jnp.einsum("TNF,TFO->TNO", jnp.broadcast_to(both, (9, *both.shape)), taps).reshape(
        3, 3, 2, size, -1
    )
    from_rows_IJNO, from_columns_IJNO = products[:, :, 0], products[:, :, 1]

    def shift(t_NO, i):
        return jnp.pad(t_NO, ((1, 1), (0, 0)))[i : i + size]

    inside_IN = jnp.stack([shift(jnp.ones((size, 1), taps.dtype), i)[:, 0] for i in range(3)])
    rows_JHO = sum(jax.vmap(shift, (0, None))(from_rows_IJNO[i], i) for i in range(3))
    columns_IWO = sum(jax.vmap(shift, (0, None))(from_columns_IJNO[:, j], j) for j in range(3))
    return jnp.einsum("JHO,JW->HWO", rows_JHO, inside_IN) + jnp.einsum(
        "IWO,IH->HWO", columns_IWO, inside_IN
    )
