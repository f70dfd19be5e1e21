"""ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627): plain vision transformers around a factorised,
normalised codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.nn import limits, quantize
from t2i_jax.nn.activation import gelu
from t2i_jax.nn.conv import Dense, boxed, patchify, sincos_grid, unpatchify
from t2i_jax.nn.fused_attention import attend
from t2i_jax.nn.transformer import REMAT
from t2i_jax.pixels import SIGNED
from t2i_jax.types import Array, Key
from t2i_jax.values import Signed

_ACTIVATIONS = {"gelu": gelu, "tanh": jnp.tanh}
_XAVIER = nn.initializers.xavier_uniform()

# The paper's sizes, at 256 pixels and 1024 tokens; "large" is the small encoder with a decoder of
# 1280, as in Parti. The paper counts one transformer stack (32M, 91M, 599M); encoder and decoder
# are one each.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {"dim": 512, "layers": 8, "heads": 8, "mlp_dim": 2048},
    "base": {"dim": 768, "layers": 12, "heads": 12, "mlp_dim": 3072},
    "large": {
        "dim": 512, "layers": 8, "heads": 8, "mlp_dim": 2048, "dim_head": 64,
        "decoder_dim": 1280, "decoder_layers": 32, "decoder_heads": 16, "decoder_mlp_dim": 5120,
    },
}  # fmt: skip


def preset(size: str, **fields: Any) -> ViTVQGAN:
    """The paper's "small", "base" or "large" network, with `fields` put over it."""
    config.one_of("preset", size, PRESETS)
    return ViTVQGAN(**{**PRESETS[size], **fields})


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward over tokens, each with a residual."""

    dim: int
    heads: int
    dim_head: int
    mlp_dim: int
    activation: str = "gelu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: Array, _: None = None) -> tuple[Array, None]:
        """The tokens after the block, and None: the pair that a scan over layers takes."""

        def make(features, name, axes, bias=True):
            return Dense(features, axes, bias, self.dtype, _XAVIER, name=name)

        # T = B N: twice as fast on a CPU.
        inner, x_TC = self.heads * self.dim_head, x_BNC.reshape(-1, self.dim)
        qkv = make(3 * inner, "to_qkv", ("embed", "heads"), bias=False)(
            _norm("attention_norm", self.dtype)(x_TC)
        )
        q, k, v = jnp.split(qkv.reshape(*x_BNC.shape[:2], 3 * self.heads, self.dim_head), 3, axis=2)
        out_TC = attend(q, k, v).reshape(-1, inner)
        x_TC = x_TC + make(self.dim, "to_out", ("heads", "embed"))(out_TC)
        hidden = make(self.mlp_dim, "wide", ("embed", "mlp"))(_norm("mlp_norm", self.dtype)(x_TC))
        x_TC = x_TC + make(self.dim, "narrow", ("mlp", "embed"))(
            _ACTIVATIONS[self.activation](hidden)
        )
        return x_TC.reshape(x_BNC.shape), None


class Transformer(nn.Module):
    """Blocks over tokens and a norm at the end; with `scan` one compiled block runs over stacked
    parameters.
    """

    dim: int
    layers: int
    heads: int
    dim_head: int
    mlp_dim: int
    activation: str = "gelu"
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: Array) -> Array:
        """The transformed tokens, same shape."""
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=not self.scan)
        shape = {
            n: getattr(self, n)
            for n in ("dim", "heads", "dim_head", "mlp_dim", "activation", "dtype")
        }
        x = x_BNC
        if self.scan:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = scanned(**shape, name="layers")(x, None)
        else:
            for i in range(self.layers):
                x, _ = block(**shape, name=f"layer_{i}")(x)
        return _norm("norm", self.dtype)(x)


class ViTVQGAN(image_tokenizer.QuantizedAutoencoder):
    """The image tokenizer of the ViT-VQGAN and Parti papers.

        network = preset("small")  # 256 pixels to 1024 tokens
        network = ViTVQGAN(image_size=32, patch_size=4, dim=96, layers=3, heads=3, mlp_dim=384)

    Attributes:
      image_size: side in pixels. patch_size: pixels per side of a token. channels: channels of the
        image.
      dim, layers, heads, mlp_dim: of the encoder, and of the decoder where `decoder_*` is None.
        dim_head: width of a head; None for dim / heads, 64 in the paper's sizes except in the large
        decoder.
      decoder_dim, decoder_layers, decoder_heads, decoder_mlp_dim: those of the decoder; None: as
        the encoder's.
      codebook_size, codebook_dim: number and width of the codes. beta: weight of the commitment
        loss.
      activation: of the feed-forward, "gelu", or "tanh" as in the weights of
        enhancing-transformers.
      output: "linear"; or "sigmoid", which the paper's logit-Laplace loss needs and Parti removed.
      scan: stack the layers and compile one (deep networks).
      remat: remat policy: "none", "full" (recomputes all), "attention" (keeps what the fused
        attention of a TPU gives), or "dots" (keeps matrix products too).
      pixel_range: lowest and highest value of the float images. dtype: of the computation.
    """

    image_size: int = 256
    patch_size: int = 8
    channels: int = 3
    dim: int = 512
    layers: int = 8
    heads: int = 8
    mlp_dim: int = 2048
    dim_head: int | None = None
    decoder_dim: int | None = None
    decoder_layers: int | None = None
    decoder_heads: int | None = None
    decoder_mlp_dim: int | None = None
    codebook_size: int = 8192
    codebook_dim: int = 32
    beta: float = 0.25
    activation: str = "gelu"
    output: str = "linear"
    scan: bool = False
    remat: str = "none"
    pixel_range: tuple[Signed, Signed] = SIGNED
    dtype: str = "float32"

    def __post_init__(self):
        limits.check(self)
        image_tokenizer.check_sizes(self, "dim")
        config.one_of("activation", self.activation, _ACTIVATIONS)
        config.one_of("output", self.output, ("linear", "sigmoid"))
        config.one_of("remat", self.remat, REMAT)
        for part, dim, heads in (("", self.dim, self.heads), ("decoder_", *self._decoder()[:2])):
            if self.dim_head is None and dim % heads:
                fits = max(dim // heads, 1) * heads
                raise UserError(
                    f"{part}dim={dim} is not a multiple of {part}heads={heads}; try "
                    f"{part}dim={fits}."
                )
            if dim % 4:
                raise UserError(f"{part}dim={dim} is not a multiple of 4; try {dim // 4 * 4 + 4}.")
        super().__post_init__()

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """Empty codebook statistics: the codebook is a parameter."""
        return {}

    @nn.nowrap
    def revive(self, params, codebook, dead_K: Array, fresh_KE: Array):
        """(params, codebook) with the dead codes replaced by latents of a recent batch."""
        return image_tokenizer.revive_embedding(params, dead_K, fresh_KE), codebook

    def setup(self):
        """Makes the layers and parameters."""
        decoder_dim, decoder_heads, decoder_layers, decoder_mlp_dim = self._decoder()
        layer = {"dtype": self.dtype, "init": _XAVIER}
        self.to_tokens = Dense(self.dim, ("patch", "embed"), **layer)
        self.encoder = self._transformer(self.dim, self.layers, self.heads, self.mlp_dim)
        self.quantizer = quantize.FactorisedVq(
            self.dim, self.codebook_size, self.codebook_dim, self.beta, self.dtype, decoder_dim
        )
        self.decoder = self._transformer(
            decoder_dim, decoder_layers, decoder_heads, decoder_mlp_dim
        )
        self.to_pixels = Dense(self.channels * self.patch_size**2, ("embed", "patch"), **layer)

    def encoder_fmap(self, image_BHWC: Array) -> Array:
        """The feature map (B, rows, columns, dim) before quantisation."""
        patches = patchify(image_BHWC.astype(self.dtype), self.patch_size)
        return self._through(self.encoder, self.to_tokens(patches))

    def features(self, fmap_BHWC: Array) -> Array:
        """The feature map that the last layer turns into pixels."""
        return self._through(self.decoder, fmap_BHWC)

    def pixels(self, features_BHWC: Array) -> Array:
        """Float32 images from `features`."""
        image = unpatchify(self.to_pixels(features_BHWC), self.patch_size).astype(jnp.float32)
        if self.output == "linear":
            return image
        low, high = self.pixel_range
        # The inverse of the loss's 0.8 x + 0.1.
        return low + (high - low) * (nn.sigmoid(image) - 0.1) / 0.8

    def _through(self, transformer, x_BHWC):
        x = x_BHWC + sincos_grid(*self.grid, x_BHWC.shape[-1], columns_first=True).astype(
            x_BHWC.dtype
        )
        return transformer(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)

    @nn.nowrap
    def _transformer(self, dim, layers, heads, mlp_dim):
        dim_head = self._inner(dim, heads) // heads
        return Transformer(
            dim,
            layers,
            heads,
            dim_head,
            mlp_dim,
            self.activation,
            self.scan,
            self.remat,
            self.dtype,
        )

    @nn.nowrap
    def _decoder(self):
        names = ("dim", "heads", "layers", "mlp_dim")
        own = [getattr(self, f"decoder_{name}") for name in names]
        return tuple(
            getattr(self, name) if o is None else o for name, o in zip(names, own, strict=True)
        )

    @nn.nowrap
    def _inner(self, dim, heads):
        return heads * (self.dim_head or dim // heads)


def _norm(name, dtype):
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=boxed(nn.initializers.ones, "embed"),
        bias_init=boxed(nn.initializers.zeros, "embed"),
        name=name,
    )
