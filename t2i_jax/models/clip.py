"""CLIP (Radford et al. 2021) as x-clip 0.14.4 has it: two transformers and their projections to one
space.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.config import one_of, some_of
from t2i_jax.errors import UserError
from t2i_jax.models.image_text import (
    DualEncoder,
    Features,
    at_size,
    masked_mean,
    unit,
    with_pooled,
)
from t2i_jax.nn import limits
from t2i_jax.nn.conv import Dense, boxed, patchify
from t2i_jax.nn.normformer import NormFormer
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.resize_right import resize_cubic
from t2i_jax.nn.transformer import REMAT
from t2i_jax.sharding import constrain
from t2i_jax.text.caption_ids import CaptionIds
from t2i_jax.types import Array, Key, Params
from t2i_jax.values import Signed

# "cls_of_filip": `embed_image` and `embed_text` of a CLIP with `use_all_token_embeds` project the
# class tokens, as DALLE2-pytorch does, although training never did. "resize_right": images of
# another size are resized as there, as if they were black beyond their edges.
COMPATS = ("cls_of_filip", "resize_right")


@dataclasses.dataclass(frozen=True)
class CLIP(DualEncoder):
    """The network of x-clip 0.14.4 (x_clip.py, `CLIP`): parameters, configuration and functions.

    Parameters: "text", "visual" (the transformers), "to_text_latent", "to_visual_latent" and
    "_extra" forms of both (equal to them at first), "temperature", and where they are asked for
    "mlm" and "logit_bias".

    Attributes:
      dim_text, dim_image, dim_latent: widths of the transformers and of the joint space.
      num_text_tokens: ids of captions are below it. text_seq_len: tokens of a caption at most.
      text_pad_id: id of padding. An id 0 that other ids follow is a token; any other id of padding
        is padding wherever it stands.
      text_enc_depth, text_heads, text_dim_head: of the text transformer.
      text_rotary_pos_emb: rotary positions in place of learnt ones.
      text_causal_mask: a token sees only those up to itself, there is no class token, and the
        caption's vector is that of its end token.
      text_eos_id: id of the end token, the first of which counts; None: the last token is it.
      text_encode_without_mask: attention sees padding too.
      visual_enc_depth, visual_heads, visual_dim_head: of the image transformer.
      visual_image_size, visual_patch_size: pixels per side of an image and of a patch.
      visual_patch_dropout: share of the patches that training drops (Li et al. 2022, FLIP).
      channels: of the images.
      use_all_token_embeds: tokens and patches are compared one by one (Yao et al. 2021, FILIP).
      text_has_cls_token, visual_has_cls_token: whether the first vector of the transformer is a
        class token, which is not compared; False, for `use_all_token_embeds` alone: it is a token
        (or a patch) like the others. A causal text transformer has none.
      downsample_image_embeds: patches are merged two by two before their projection; for
        `use_all_token_embeds` alone. Those that `visual_patch_dropout` leaves count as a grid as
        nearly square as there is, so training needs a number that makes a rectangle of it.
      extra_latent_projection: a second pair of projections for image-to-text (CLOOB).
      use_mlm: a row of the embedding and logits for masked language modelling.
      logit_bias: first value of a learnt bias of similarities, as the sigmoid loss wants it
        (Zhai et al. 2023: -10); None: there is none.
      pixel_range: lowest and highest value of the pixels that the transformer sees; DALLE2-pytorch
        gives its CLIP (0, 1).
      compat: what to keep of the PyTorch packages where they are wrong: "cls_of_filip", a CLIP with
        `use_all_token_embeds` embeds whole captions and images by its class tokens, which training
        never did; "resize_right", images of another size are resized as if they were black beyond
        their edges.
      remat: remat policy: "none", "dots", "attention" or "full". dtype: of the
        products; norms, softmax and latents are float32.
    """

    dim_text: int = 512
    dim_image: int = 512
    dim_latent: int = 512
    num_text_tokens: int = 10000
    text_enc_depth: int = 6
    text_seq_len: int = 256
    text_pad_id: int = 0
    text_heads: int = 8
    text_dim_head: int = 64
    text_rotary_pos_emb: bool = False
    text_causal_mask: bool = False
    text_eos_id: int | None = None
    text_encode_without_mask: bool = False
    visual_enc_depth: int = 6
    visual_heads: int = 8
    visual_dim_head: int = 64
    visual_image_size: int = 256
    visual_patch_size: int = 32
    visual_patch_dropout: float = 0.5
    channels: int = 3
    use_all_token_embeds: bool = False
    text_has_cls_token: bool = True
    visual_has_cls_token: bool = True
    downsample_image_embeds: bool = False
    extra_latent_projection: bool = False
    use_mlm: bool = False
    logit_bias: Signed | None = None
    pixel_range: tuple[Signed, Signed] = (-1.0, 1.0)
    compat: tuple[str, ...] = ()
    remat: str = "none"
    dtype: str = "float32"

    scale_name: ClassVar[str] = "temperature"

    def __post_init__(self):
        _check(self)

    @property
    def width(self) -> int:
        """D of the joint space."""
        return self.dim_latent

    @property
    def text_width(self) -> int:
        """E of the encodings of text tokens."""
        return self.dim_text

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.visual_image_size

    @property
    def text_length(self) -> int:
        """Tokens of a caption at most."""
        return self.text_seq_len

    @property
    def vocab_size(self) -> int:
        """Ids of captions are below it."""
        return self.num_text_tokens

    @property
    def captions(self) -> CaptionIds:
        """The encoder from captions to token ids, by a vocabulary that is trained on them."""
        return CaptionIds(self.num_text_tokens, self.text_seq_len, pad_id=self.text_pad_id)

    @property
    def hides_by_mask(self) -> bool:
        """True where attention heeds the mask, or tokens are compared one by one."""
        return not self.text_encode_without_mask or self.use_all_token_embeds

    @functools.cached_property
    def network(self) -> _Network:
        """The Flax module."""
        return _Network(self)

    def init(self, key: Key) -> dict[str, Any]:
        """First parameters, boxed with their logical axes."""
        text_BL = jnp.zeros((1, min(2, self.text_seq_len)), jnp.int32)
        side = self.visual_image_size
        image_BHWC = jnp.zeros((1, side, side, self.channels))
        params = dict(self.network.init(key, text_BL, text_BL == 0, image_BHWC)["params"])
        for name in ("to_text_latent", "to_visual_latent"):
            params[f"{name}_extra"] = jax.tree.map(jnp.copy, params[name])
        params["temperature"] = jnp.float32(1)
        if self.logit_bias is not None:
            params["logit_bias"] = jnp.float32(self.logit_bias)
        return params

    def embed_image(self, params: Params, image_BHWC: Array) -> Array:
        """(B, D) float32, l2-normalised, of float images in [-1, 1] of any size.

        With `use_all_token_embeds`, whose projection training gives patches alone, it is the mean
        of their latents, normalised.
        """
        if not self._by_tokens:
            return super().embed_image(params, image_BHWC)
        compared = self.compared_patches(self.image_features(params, image_BHWC))
        return unit(masked_mean(self.project_image(params, compared.tokens_BNE), None))

    def _embedded(self, params, features, mask_BL):
        """(B, D): the caption's embedding; with `use_all_token_embeds` the mean of its tokens'
        latents, normalised.
        """
        if not self._by_tokens:
            return super()._embedded(params, features, mask_BL)
        compared = self.compared_tokens(features)
        latents_BTD = self.project_text(params, compared.tokens_BNE)
        return unit(masked_mean(latents_BTD, compared.mask_BN))

    def image_features(self, params: Params, image_BHWC: Array, key: Key | None = None) -> Features:
        """The image transformer's output, of float images in [-1, 1]; a key drops patches.

        Raises:
          UserError: patches are dropped, and what is left can't be merged two by two.
        """
        size = self.visual_image_size
        if key is not None and self.downsample_image_embeds:
            _check_rectangle(self)
        if "resize_right" in self.compat:  # whose black is a zero of `pixel_range`
            image_BHWC = resize_cubic(self._ranged(image_BHWC.astype(jnp.float32)), (size, size))
        else:
            image_BHWC = self._ranged(at_size(image_BHWC, size))
        return self._features(params, image_BHWC, key, method="encode_image")

    def text_features(self, params: Params, text_BL: Array, mask_BL: Array) -> Features:
        """The text transformer's output, of token ids with L at most `text_seq_len`."""
        if text_BL.shape[1] > self.text_seq_len:
            raise UserError(
                f"text has {text_BL.shape[1]} tokens, more than text_seq_len={self.text_seq_len}; "
                "cut it."
            )
        return self._features(params, text_BL, mask_BL, method="encode_text", mask_BN=mask_BL)

    def compared_tokens(self, features: Features) -> Features:
        """Those of a caption that `use_all_token_embeds` compares one by one: with
        `text_has_cls_token=False` the class token is the first of them.
        """
        has_other = self.text_has_cls_token or self.text_causal_mask
        return features if has_other else with_pooled(features)

    def compared_patches(self, features: Features) -> Features:
        """Those of an image that `use_all_token_embeds` compares one by one: with
        `visual_has_cls_token=False` the class token is the first of them.
        """
        return features if self.visual_has_cls_token else with_pooled(features)

    def project_image(self, params: Params, features: Array, extra: bool = False) -> Array:
        """l2-normalised float32 latents (..., D) of pooled features or of tokens (B, N, E).

        With `downsample_image_embeds` there are about a quarter as many latents as tokens.
        """
        kernel = params["to_visual_latent_extra" if extra else "to_visual_latent"]
        return unit(self._apply({"to_visual_latent": kernel}, features, method="visual_latent"))

    def project_text(self, params: Params, features: Array, extra: bool = False) -> Array:
        """l2-normalised float32 latents (..., D) of pooled features or of tokens."""
        kernel = params["to_text_latent_extra" if extra else "to_text_latent"]
        return unit(self._apply({"to_text_latent": kernel}, features, method="text_latent"))

    def mlm_logits(self, params: Params, tokens_BLE: Array) -> Array:
        """Logits over the vocabulary (B, L, num_text_tokens) of the transformer's tokens."""
        return self._apply({"mlm": params["mlm"]}, tokens_BLE, method="token_logits")

    @property
    def mask_id(self) -> int:
        """The id of a masked token: the row that `use_mlm` adds."""
        return self.num_text_tokens

    def _ranged(self, image_BHWC):
        """Pixels of [-1, 1] in `pixel_range`."""
        low, high = self.pixel_range
        return (image_BHWC + 1) * ((high - low) / 2) + low

    @property
    def _by_tokens(self):
        return self.use_all_token_embeds and "cls_of_filip" not in self.compat


class _Network(nn.Module):
    """The layers of a CLIP."""

    clip: CLIP

    def setup(self):
        clip = self.clip
        self.text_transformer = _TextTransformer(clip, name="text")
        self.visual_transformer = _VisionTransformer(clip, name="visual")
        self.to_text_latent = Dense(clip.dim_latent, ("embed", None), bias=False, dtype=clip.dtype)
        if clip.downsample_image_embeds:
            self.to_visual_latent = _Downsampled(clip)
        else:
            self.to_visual_latent = Dense(
                clip.dim_latent, ("embed", None), bias=False, dtype=clip.dtype
            )
        if clip.use_mlm:
            self.mlm = Dense(clip.num_text_tokens, ("embed", "vocab"), dtype=clip.dtype)

    def __call__(self, text_BL, mask_BL, image_BHWC):
        """Uses every parameter once, for `init`."""
        _, text = self.text_transformer(text_BL, mask_BL)
        _, image = self.visual_transformer(image_BHWC, None)
        logits = self.mlm(text) if self.clip.use_mlm else None
        return self.to_text_latent(text), self.to_visual_latent(image), logits

    def encode_text(self, text_BL, mask_BL):
        return self.text_transformer(text_BL, mask_BL)

    def encode_image(self, image_BHWC, key):
        return self.visual_transformer(image_BHWC, key)

    def text_latent(self, features):
        return self.to_text_latent(features)

    def visual_latent(self, features):
        return self.to_visual_latent(features)

    def token_logits(self, tokens_BLE):
        return self.mlm(tokens_BLE)


class _TextTransformer(nn.Module):
    clip: CLIP

    @nn.compact
    def __call__(self, text_BL, mask_BL):
        """(pooled (B, E), tokens (B, L, E)): the class token, or the end token of a causal one."""
        clip, normal = self.clip, nn.initializers.normal(1.0)
        rows = clip.num_text_tokens + clip.use_mlm
        table_VC = parameter(
            self, "embedding", boxed(normal, "vocab", "embed"), (rows, clip.dim_text), jnp.float32
        )
        # whole for the look-up, whose rows are those of the batch
        x_BLC = constrain(table_VC, None, None)[text_BL]
        if not clip.text_rotary_pos_emb:
            shape = (clip.text_seq_len, clip.dim_text)
            positions_LC = parameter(self, "positions", boxed(normal, None, "embed"), shape)
            x_BLC = x_BLC + positions_LC[: text_BL.shape[1]]
        seen_BL = mask_BL
        if not clip.text_causal_mask:
            cls_C = parameter(self, "cls", boxed(normal, "embed"), (clip.dim_text,))
            cls_B1C = jnp.broadcast_to(cls_C, (x_BLC.shape[0], 1, clip.dim_text))
            x_BLC = jnp.concatenate([cls_B1C, x_BLC], axis=1)
            seen_BL = jnp.pad(mask_BL, ((0, 0), (1, 0)), constant_values=True)
        y_BLC = NormFormer(
            dim=clip.dim_text, depth=clip.text_enc_depth, heads=clip.text_heads,
            dim_head=clip.text_dim_head, mlp_dim=4 * clip.dim_text, causal=clip.text_causal_mask,
            rotary=clip.text_rotary_pos_emb, remat=clip.remat, dtype=clip.dtype,
            name="transformer",
        )(x_BLC, None if clip.text_encode_without_mask else seen_BL)  # fmt: skip
        if not clip.text_causal_mask:
            return y_BLC[:, 0], y_BLC[:, 1:]
        return jnp.take_along_axis(y_BLC, self._ends(text_BL, mask_BL), axis=1)[:, 0], y_BLC

    def _ends(self, text_BL, mask_BL):
        """(B, 1, 1): the position of each caption's end token."""
        # the last place that the mask has, also where words before it are hidden
        last_B = jnp.max(jnp.where(mask_BL, jnp.arange(mask_BL.shape[1]), 0), axis=1)
        if self.clip.text_eos_id is not None:
            is_end_BL = (text_BL == self.clip.text_eos_id) & mask_BL
            last_B = jnp.where(is_end_BL.any(1), jnp.argmax(is_end_BL, axis=1), last_B)
        return last_B[:, None, None]


class _VisionTransformer(nn.Module):
    clip: CLIP

    @nn.compact
    def __call__(self, image_BHWC, key):
        """(pooled (B, E), tokens (B, N, E)) of float images of `pixel_range`."""
        clip = self.clip
        patches_BHWP = patchify(image_BHWC.astype(clip.dtype), clip.visual_patch_size)
        patches_BNP = patches_BHWP.reshape(image_BHWC.shape[0], -1, patches_BHWP.shape[-1])
        x_BNC = Dense(clip.dim_image, ("patch", "embed"), dtype=clip.dtype, name="to_tokens")(
            patches_BNP
        )
        init = boxed(nn.initializers.normal(1.0), None, "embed")
        x_BNC = x_BNC + parameter(self, "positions", init, (x_BNC.shape[1], clip.dim_image))
        if key is not None and clip.visual_patch_dropout:
            x_BNC = some_of_tokens(x_BNC, clip.visual_patch_dropout, key)
        y_BNC = NormFormer(
            dim=clip.dim_image, depth=clip.visual_enc_depth, heads=clip.visual_heads,
            dim_head=clip.visual_dim_head, mlp_dim=4 * clip.dim_image, remat=clip.remat,
            dtype=clip.dtype, name="transformer",
        )(x_BNC)  # fmt: skip
        pool = Dense(
            clip.dim_image, ("embed", None), bias=False, dtype=clip.dtype, name="to_cls_tokens"
        )
        return pool(jnp.mean(y_BNC, axis=1)), y_BNC


class _Downsampled(nn.Module):
    """A depthwise convolution with a 4x4 window and stride 2 over the grid of patches, then a
    linear map.
    """

    clip: CLIP

    @nn.compact
    def __call__(self, tokens_BNC):
        clip, side = self.clip, math.isqrt(tokens_BNC.shape[1])
        width = tokens_BNC.shape[1] // side
        grid_BHWC = tokens_BNC.reshape(-1, side, width, clip.dim_image).astype(clip.dtype)
        init = boxed(_uniform_of_16, None, None, "embed")
        kernel_KKC = parameter(self, "depthwise", init, (4, 4, clip.dim_image)).astype(clip.dtype)
        y_BHWC = jax.lax.conv_general_dilated(
            grid_BHWC, kernel_KKC[:, :, None], (2, 2), [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=clip.dim_image,
        )  # fmt: skip
        y_BNC = y_BHWC.reshape(tokens_BNC.shape[0], -1, clip.dim_image)
        return Dense(clip.dim_latent, ("embed", None), dtype=clip.dtype, name="pointwise")(y_BNC)


def _uniform_of_16(key, shape, dtype=jnp.float32):
    """U(-1/4, 1/4), as PyTorch starts a depthwise convolution with 16 taps."""
    return jax.random.uniform(key, shape, dtype, -0.25, 0.25)


def some_of_tokens(x_BNC: Array, dropped: float, key: Key) -> Array:
    """max(1, floor(N (1 - dropped))) tokens of each row, drawn at random (Li et al. 2022)."""
    batch, count, _ = x_BNC.shape
    noise_BN = jax.random.normal(key, (batch, count))
    chosen_BK = jax.lax.top_k(noise_BN, _kept(count, dropped))[1]
    return jnp.take_along_axis(x_BNC, chosen_BK[..., None], axis=1)


def _kept(count, dropped):
    return max(1, int(count * (1 - dropped)))


def _check_rectangle(clip):
    """Refuses a number of patches that training leaves and that is no grid of two by two or more,
    as x-clip lays it out: as many rows as the root of the number, rounded down.
    """
    count = (clip.visual_image_size // clip.visual_patch_size) ** 2
    kept = _kept(count, clip.visual_patch_dropout)
    if kept < 4 or kept % math.isqrt(kept):
        raise UserError(
            f"visual_patch_dropout={clip.visual_patch_dropout} leaves {kept} of {count} patches, "
            "which make no rectangle for downsample_image_embeds=True to merge; give 0."
        )


_POSITIVE = (
    "dim_text", "dim_image", "dim_latent", "num_text_tokens", "text_enc_depth", "text_seq_len",
    "text_heads", "text_dim_head", "visual_enc_depth", "visual_heads", "visual_dim_head",
    "visual_image_size", "visual_patch_size", "channels",
)  # fmt: skip


def _check(clip):
    limits.check(clip)
    for field in _POSITIVE:
        if getattr(clip, field) < 1:
            raise UserError(f"{field}={getattr(clip, field)} is not positive; give 1 or more.")
    size, patch = clip.visual_image_size, clip.visual_patch_size
    if size % patch:
        raise UserError(
            f"visual_image_size={size} is not a multiple of visual_patch_size={patch}; try "
            f"{-(-size // patch) * patch}."
        )
    if not 0 <= clip.visual_patch_dropout < 1:
        raise UserError(
            f"visual_patch_dropout={clip.visual_patch_dropout} is outside [0, 1); try 0.5."
        )
    if not 0 <= clip.text_pad_id < clip.num_text_tokens:
        raise UserError(
            f"text_pad_id={clip.text_pad_id} is none of the ids below "
            f"num_text_tokens={clip.num_text_tokens}; give one of them, for example 0."
        )
    for field in ("text_has_cls_token", "visual_has_cls_token"):
        if not getattr(clip, field) and not clip.use_all_token_embeds:
            raise UserError(
                f"{field}=False is for the tokens of use_all_token_embeds=True; set both, or leave "
                "it out."
            )
    if clip.downsample_image_embeds and not clip.visual_has_cls_token:
        raise UserError(
            "visual_has_cls_token=False puts the class token among the patches, whose grid "
            "downsample_image_embeds=True merges; leave one out."
        )
    if clip.downsample_image_embeds and not clip.use_all_token_embeds:
        raise UserError(
            "downsample_image_embeds=True is for the tokens of use_all_token_embeds=True; set both."
        )
    if clip.downsample_image_embeds and size // patch < 2:
        raise UserError(
            f"visual_patch_size={patch} makes one patch of visual_image_size={size}, and "
            "downsample_image_embeds=True merges patches two by two; give a smaller one."
        )
    if clip.text_eos_id is not None and not clip.text_causal_mask:
        raise UserError("text_eos_id is given without text_causal_mask=True; leave it out.")
    low, high = clip.pixel_range
    if not low < high:
        raise UserError(f"pixel_range={clip.pixel_range} is empty; give (-1.0, 1.0) or (0.0, 1.0).")
    some_of("compat", clip.compat, COMPATS)
    if "cls_of_filip" in clip.compat and clip.downsample_image_embeds:
        raise UserError(
            "compat=('cls_of_filip',) projects a class token, and downsample_image_embeds=True "
            "projects a grid; leave one out."
        )
    one_of("remat", clip.remat, REMAT)
