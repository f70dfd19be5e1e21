"""CLIP with a vision transformer as OpenAI published it (Radford et al. 2021), and OpenCLIP's of
the same form.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.models.clip import some_of_tokens
from t2i_jax.models.image_text import DualEncoder, Features, at_size, unit
from t2i_jax.nn import limits
from t2i_jax.nn.conv import Dense, boxed, patchify
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.residual_attention import ACTIVATIONS, ResidualAttention, biased_norm
from t2i_jax.nn.transformer import REMAT
from t2i_jax.sharding import constrain
from t2i_jax.text.caption_ids import CaptionIds
from t2i_jax.types import Array, Key, Params
from t2i_jax.values import Signed

# Mean and standard deviation of the pixels, from 0 to 1, of OpenAI's training images.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class OpenAIClip(DualEncoder):
    """The network of OpenAI's CLIP: parameters, configuration and functions.

    A caption's vector is that of its end token, the last one of its mask; an image's that of its
    class token. Parameters: "text", "visual", "logit_scale", and "logit_bias" where it is asked
    for.

    Attributes:
      embed_dim: width of the joint space.
      image_resolution, vision_patch_size: pixels per side of an image and of a patch.
      vision_layers, vision_width: of the image transformer. vision_heads: None: one per 64 of it.
      context_length: tokens of a caption at most. vocab_size: rows of the token embedding.
      transformer_width, transformer_heads, transformer_layers: of the text transformer.
      vision_mlp_dim, transformer_mlp_dim: hidden widths of the MLPs; None: four times the width.
      activation: "quick_gelu" of OpenAI's weights, or "gelu" of most others.
      epsilon: of the norms.
      mean, std: by which pixels from 0 to 1 are normalised, per channel.
      visual_patch_dropout: share of the patches that training drops (Li et al. 2022, FLIP).
      logit_bias: first value of a learnt bias of similarities, for the sigmoid loss; None: none.
      remat: remat policy: "none", "dots", "attention" or "full". dtype: of the
        products; norms, softmax and latents are float32.
    """

    embed_dim: int = 512
    image_resolution: int = 224
    vision_layers: int = 12
    vision_width: int = 768
    vision_patch_size: int = 32
    vision_heads: int | None = None
    context_length: int = 77
    vocab_size: int = 49408
    transformer_width: int = 512
    transformer_heads: int = 8
    transformer_layers: int = 12
    vision_mlp_dim: int | None = None
    transformer_mlp_dim: int | None = None
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    visual_patch_dropout: float = 0.0
    logit_bias: Signed | None = None
    remat: str = "none"
    dtype: str = "float32"

    scale_name: ClassVar[str] = "logit_scale"

    def __post_init__(self):
        _check(self)

    @property
    def width(self) -> int:
        """D of the joint space."""
        return self.embed_dim

    @property
    def text_width(self) -> int:
        """E of the encodings of text tokens."""
        return self.transformer_width

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.image_resolution

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    @property
    def text_length(self) -> int:
        """Tokens of a caption at most."""
        return self.context_length

    @property
    def captions(self) -> CaptionIds:
        """The encoder from captions to token ids, by a vocabulary that is trained on them;
        published weights want `CaptionIds(..., source=FOLDER)` with their own.
        """
        return CaptionIds(self.vocab_size, self.context_length)

    @property
    def hides_by_mask(self) -> bool:
        """False: a token sees all before it, and the mask tells where the caption ends."""
        return False

    @functools.cached_property
    def network(self) -> _Network:
        """The Flax module."""
        return _Network(self)

    def init(self, key: Key) -> dict[str, Any]:
        """First parameters, boxed with their logical axes."""
        text_BL = jnp.zeros((1, min(2, self.context_length)), jnp.int32)
        side = self.image_resolution
        image_BHWC = jnp.zeros((1, side, side, self.channels))
        params = dict(self.network.init(key, text_BL, text_BL == 0, image_BHWC)["params"])
        params["logit_scale"] = jnp.float32(math.log(1 / 0.07))
        if self.logit_bias is not None:
            params["logit_bias"] = jnp.float32(self.logit_bias)
        return params

    def image_features(self, params: Params, image_BHWC: Array, key: Key | None = None) -> Features:
        """The image transformer's output, of float images in [-1, 1]; a key drops patches."""
        image_BHWC = (at_size(image_BHWC, self.image_resolution) + 1) / 2
        image_BHWC = (image_BHWC - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return self._features(params, image_BHWC, key, method="encode_image")

    def text_features(self, params: Params, text_BL: Array, mask_BL: Array) -> Features:
        """The text transformer's output after its last norm, of token ids with L at most
        `context_length`.
        """
        if text_BL.shape[1] > self.context_length:
            raise UserError(
                f"text has {text_BL.shape[1]} tokens, more than context_length="
                f"{self.context_length}; cut it."
            )
        return self._features(params, text_BL, mask_BL, method="encode_text", mask_BN=mask_BL)

    def project_image(self, params: Params, features: Array, extra: bool = False) -> Array:
        """l2-normalised float32 latents (..., D); there are no second projections."""
        return self._projected(params["visual"]["projection"], features)

    def project_text(self, params: Params, features: Array, extra: bool = False) -> Array:
        """l2-normalised float32 latents (..., D); there are no second projections."""
        return self._projected(params["text"]["projection"], features)

    def image_vectors(self, params: Params, pixels_BHWC: Array) -> Array:
        """(B, D) float32, projected and of any length, of normalised pixels, (x - mean) / std, at
        `image_resolution`.
        """
        features = self._features(params, pixels_BHWC, None, method="encode_image")
        return features.pooled_BE @ params["visual"]["projection"]

    def text_vectors(self, params: Params, text_BL: Array, mask_BL: Array) -> Array:
        """(B, D) float32, projected and of any length, of token ids."""
        features = self.text_features(params, text_BL, mask_BL)
        return features.pooled_BE @ params["text"]["projection"]

    def _projected(self, kernel_ED, features):
        dtype = jnp.dtype(self.dtype)
        return unit(features.astype(dtype) @ kernel_ED.astype(dtype))


class _Network(nn.Module):
    """The two transformers of an OpenAIClip."""

    clip: OpenAIClip

    def setup(self):
        self.text_transformer = _TextTransformer(self.clip, name="text")
        self.visual_transformer = _VisionTransformer(self.clip, name="visual")

    def __call__(self, text_BL, mask_BL, image_BHWC):
        """Uses every parameter once, for `init`."""
        return self.encode_text(text_BL, mask_BL), self.encode_image(image_BHWC, None)

    def encode_text(self, text_BL, mask_BL):
        return self.text_transformer(text_BL, mask_BL)

    def encode_image(self, image_BHWC, key):
        return self.visual_transformer(image_BHWC, key)


def _projection(module, width, dim):
    """The kernel of a projection to the joint space, which is applied to pooled features."""
    init = boxed(nn.initializers.normal(width**-0.5), "embed", None)
    return parameter(module, "projection", init, (width, dim))


class _TextTransformer(nn.Module):
    clip: OpenAIClip

    @nn.compact
    def __call__(self, text_BL, mask_BL):
        """(pooled (B, E), tokens (B, L, E)), after the last norm."""
        clip, width = self.clip, self.clip.transformer_width
        init = boxed(nn.initializers.normal(0.02), "vocab", "embed")
        table_VC = parameter(self, "embedding", init, (clip.vocab_size, width))
        init = boxed(nn.initializers.normal(0.01), None, "embed")
        positions_LC = parameter(self, "positions", init, (clip.context_length, width))
        # whole for the look-up, whose rows are those of the batch
        x_BLC = constrain(table_VC, None, None)[text_BL] + positions_LC[: text_BL.shape[1]]
        # padding comes last, where no token sees it
        y_BLC = ResidualAttention(
            dim=width, depth=clip.transformer_layers, heads=clip.transformer_heads,
            mlp_dim=clip.transformer_mlp_dim or 4 * width, activation=clip.activation,
            epsilon=clip.epsilon, causal=True, remat=clip.remat, dtype=clip.dtype,
            name="transformer",
        )(x_BLC)  # fmt: skip
        y_BLC = biased_norm("norm", clip.dtype, clip.epsilon)(y_BLC)
        _projection(self, width, clip.embed_dim)
        last_B = jnp.maximum(jnp.sum(mask_BL, axis=1) - 1, 0)
        return jnp.take_along_axis(y_BLC, last_B[:, None, None], axis=1)[:, 0], y_BLC


class _VisionTransformer(nn.Module):
    clip: OpenAIClip

    @nn.compact
    def __call__(self, image_BHWC, key):
        """(pooled (B, E) after a norm, patches (B, N, E)) of normalised images."""
        clip, width = self.clip, self.clip.vision_width
        patches_BHWP = patchify(image_BHWC.astype(clip.dtype), clip.vision_patch_size)
        patches_BNP = patches_BHWP.reshape(image_BHWC.shape[0], -1, patches_BHWP.shape[-1])
        x_BNC = Dense(width, ("patch", "embed"), bias=False, dtype=clip.dtype, name="to_tokens")(
            patches_BNP
        )
        normal = nn.initializers.normal(width**-0.5)
        cls_C = parameter(self, "cls", boxed(normal, "embed"), (width,))
        positions_NC = parameter(
            self, "positions", boxed(normal, None, "embed"), (x_BNC.shape[1] + 1, width)
        )
        x_BNC = x_BNC + positions_NC[1:]
        if key is not None and clip.visual_patch_dropout:
            x_BNC = some_of_tokens(x_BNC, clip.visual_patch_dropout, key)
        cls_B1C = jnp.broadcast_to(cls_C + positions_NC[0], (x_BNC.shape[0], 1, width))
        x_BNC = jnp.concatenate([cls_B1C.astype(x_BNC.dtype), x_BNC], axis=1)
        x_BNC = biased_norm("norm_in", clip.dtype, clip.epsilon)(x_BNC)
        y_BNC = ResidualAttention(
            dim=width, depth=clip.vision_layers, heads=clip.vision_heads or max(width // 64, 1),
            mlp_dim=clip.vision_mlp_dim or 4 * width, activation=clip.activation,
            epsilon=clip.epsilon, remat=clip.remat, dtype=clip.dtype, name="transformer",
        )(x_BNC)  # fmt: skip
        _projection(self, width, clip.embed_dim)
        return biased_norm("norm", clip.dtype, clip.epsilon)(y_BNC[:, 0]), y_BNC[:, 1:]


_POSITIVE = (
    "embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size",
    "context_length", "vocab_size", "transformer_width", "transformer_heads", "transformer_layers",
)  # fmt: skip


def _check(clip):
    limits.check(clip)
    for field in _POSITIVE:
        if getattr(clip, field) < 1:
            raise UserError(f"{field}={getattr(clip, field)} is not positive; give 1 or more.")
    for width, heads, field in (
        (clip.vision_width, clip.vision_heads or max(clip.vision_width // 64, 1), "vision_heads"),
        (clip.transformer_width, clip.transformer_heads, "transformer_heads"),
    ):
        if heads < 1 or width % heads:
            raise UserError(f"{field}={heads} does not divide the width {width}; try 1.")
    size, patch = clip.image_resolution, clip.vision_patch_size
    if size % patch:
        raise UserError(
            f"image_resolution={size} is not a multiple of vision_patch_size={patch}; try "
            f"{-(-size // patch) * patch}."
        )
    if not 0 <= clip.visual_patch_dropout < 1:
        raise UserError(
            f"visual_patch_dropout={clip.visual_patch_dropout} is outside [0, 1); try 0.5."
        )
    if len(clip.mean) != len(clip.std) or not clip.mean or min(clip.std) <= 0:
        raise UserError(
            f"mean={clip.mean} and std={clip.std} must have one number per channel, std above 0; "
            "leave them out for those of OpenAI."
        )
    one_of("activation", clip.activation, ACTIVATIONS)
    one_of("remat", clip.remat, REMAT)


def _sizes():
    base = OpenAIClip()
    large = OpenAIClip(
        embed_dim=768, vision_layers=24, vision_width=1024, vision_patch_size=14,
        transformer_width=768, transformer_heads=12,
    )  # fmt: skip
    huge = OpenAIClip(
        embed_dim=1024, vision_layers=32, vision_width=1280, vision_patch_size=14,
        vision_heads=16, transformer_width=1024, transformer_heads=16, transformer_layers=24,
        activation="gelu",
    )  # fmt: skip
    return {
        "ViT-B/32": base,
        "ViT-B/16": dataclasses.replace(base, vision_patch_size=16),
        "ViT-L/14": large,
        "ViT-L/14@336px": dataclasses.replace(large, image_resolution=336),
        "ViT-H-14": huge,
    }


SIZES: dict[str, OpenAIClip] = _sizes()  # the published networks by OpenAI's and OpenCLIP's names
