"""The U-Net of dalle2-pytorch 1.15.6, weight for weight: DALL-E 2's decoder and its upsamplers
(Ramesh et al. 2022, section 2.1 and appendix C).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.models import decoder_unet_sizes as sizes
from t2i_jax.models.unet_sizes import idle_kernels
from t2i_jax.nn import resample
from t2i_jax.nn.conv import POINTWISE, Dense, conv
from t2i_jax.nn.decoder_conditioning import (
    ImageCondition,
    TextTokens,
    TextVector,
    TimeCondition,
)
from t2i_jax.nn.group_resnet_block import GroupBlock, GroupResnetBlock
from t2i_jax.nn.null_attention import NullSelfAttention, UnitLinearAttention
from t2i_jax.nn.resize_right import resize_cubic
from t2i_jax.nn.transformer import REMAT
from t2i_jax.nn.unet_attention import MAX_SCORES, affine_norm
from t2i_jax.sharding import constrain
from t2i_jax.types import Array


class DecoderUnet(nn.Module):
    """The prediction of a diffusion model from a noised image, its timestep, the embedding of an
    image and the encodings of a text.

        unet = DecoderUnet(dim=128, image_embed_dim=512, cond_on_image_embeds=True)
        params = unet.init(key, x_BHWC, condition_B, image_embed_BD)["params"]
        out_BHWC = unet.apply({"params": params}, x_BHWC, condition_B, image_embed_BD)

    A field marked "per level" is one value, or a tuple with one per entry of `dim_mults`. Images
    need not be square; their sides are multiples of `multiple`.

    Attributes:
      dim, dim_mults: level i is dim * dim_mults[i] wide. init_dim: width of the first convolution;
        None: dim.
      channels: channels of the image. channels_out: channels of the output; None: channels.
      cond_on_image_embeds: whether it is conditioned on an image embedding. image_embed_dim: width
        of the image embedding; None: whatever width it is first given. num_image_tokens: tokens
        that are made of the image embedding. add_image_embeds_to_time: whether the image embedding
        is added to the vector of the timestep too. image_embed_scale: what the image embedding is
        multiplied by; it has length 1, and the root of its width makes numbers of about 1 of it, as
        the text's are.
      cond_on_text_encodings: whether it is conditioned on encodings of a text; the blocks in the
        middle see them. text_embed_dim: width of these encodings; None: that of the task's text
        encoder. max_text_len: texts are cut, or filled up with learnt tokens.
      text_at_levels: whether the cross-attention of the levels sees the text too, as GLIDE's and
        the paper's does (section 2.1); dalle2-pytorch shows it to the middle alone.
        add_text_to_time: whether the mean of the text's tokens is added to the vector of the
        timestep, where GLIDE adds its last token; dalle2-pytorch has no such weights.
      cond_dim: width of the condition's tokens; None: dim. num_time_tokens: tokens of the timestep.
      lowres_cond: whether it enlarges a smaller image. lowres_noise_cond: whether that image comes
        noised, with its own timestep.
      self_cond: whether the network sees its own last estimate.
      num_resnet_blocks: residual blocks after each level's first (per level).
      resnet_groups: of the group norms (per level). resnet_weight_standardization: whether the
        convolutions of residual blocks have standardised weights.
      self_attn: self-attention at a level (per level). sparse_attn: linear attention at the levels
        without self-attention. attend_at_middle: self-attention at the bottom.
      cross_attn: cross-attention to the tokens of timestep and image at a level (per level); None:
        at all levels but the first.
      attn_heads, attn_dim_head: heads of self-attention and their width. cross_attn_heads,
        cross_attn_dim_head: heads of cross-attention and their width, for which dalle2-pytorch has
        no arguments.
      cosine_sim_self_attn, cosine_sim_cross_attn: scores are cosines times 16.
      init_cross_embed, init_cross_embed_kernel_sizes: the first convolution has several kernel
        sizes. init_conv_kernel_size: the size of its kernel, where it has one alone.
        cross_embed_downsample, cross_embed_downsample_kernel_sizes: the convolutions that shrink
        have several kernel sizes.
      memory_efficient: each level downsamples its input first, not its output last; there is a
        block before them.
      scale_skip_connection: skip connections are divided by sqrt(2).
      combine_upsample_fmaps: the end sees the feature maps of all levels of the way up.
      pixel_shuffle_upsample: upsampling by pixel shuffle; else by nearest and a convolution.
      final_conv_kernel_size: side of the last convolution's window.
      compat: what the package does and we do not: "squared_scale", the scores of self-attention are
        divided by its width and not by the root of it; "image_tokens", every image token is the
        embedding itself, as where `image_embed_dim` is `cond_dim` there; "unused_weights", there
        are weights for absent conditions that the network does not have. Weights of the package
        come with the values they need.
      attn_max_scores: scores of an image, queries times keys, above which attention is computed
        in blocks of queries (see `unet_attention.attend`).
      remat: remat policy of each block: "none", "full" (recomputes all), or "dots" (keeps only
        matrix products).
      dtype: of the computation; norms, softmax and the output are float32.
    """

    dim: int
    image_embed_dim: int | None = None
    text_embed_dim: int | None = None
    cond_dim: int | None = None
    num_image_tokens: int = 4
    num_time_tokens: int = 2
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    channels_out: int | None = None
    self_attn: bool | tuple[bool, ...] = False
    attn_dim_head: int = 32
    attn_heads: int = 16
    lowres_cond: bool = False
    lowres_noise_cond: bool = False
    self_cond: bool = False
    sparse_attn: bool = False
    cosine_sim_cross_attn: bool = False
    cosine_sim_self_attn: bool = False
    attend_at_middle: bool = True
    cross_attn: bool | tuple[bool, ...] | None = None
    cross_attn_heads: int = 8
    cross_attn_dim_head: int = 64
    cond_on_text_encodings: bool = False
    max_text_len: int = 256
    text_at_levels: bool = False
    add_text_to_time: bool = False
    cond_on_image_embeds: bool = False
    image_embed_scale: float = 1.0
    add_image_embeds_to_time: bool = True
    init_dim: int | None = None
    init_conv_kernel_size: int = 7
    resnet_groups: int | tuple[int, ...] = 8
    resnet_weight_standardization: bool = False
    num_resnet_blocks: int | tuple[int, ...] = 2
    init_cross_embed: bool = True
    init_cross_embed_kernel_sizes: tuple[int, ...] = (3, 7, 15)
    cross_embed_downsample: bool = False
    cross_embed_downsample_kernel_sizes: tuple[int, ...] = (2, 4)
    memory_efficient: bool = False
    scale_skip_connection: bool = False
    pixel_shuffle_upsample: bool = True
    final_conv_kernel_size: int = 1
    combine_upsample_fmaps: bool = False
    compat: tuple[str, ...] = ()
    attn_max_scores: int = MAX_SCORES
    remat: str = "none"
    dtype: str = "float32"

    trains = True  # it has weights to train

    def __post_init__(self):
        sizes.check(self)
        super().__post_init__()

    @property
    def multiple(self) -> int:
        """The number of pixels of which the sides of an image must be multiples."""
        return 2 ** (len(self.dim_mults) - (not self.memory_efficient))

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = idle_kernels(self)
        if not self.cond_on_image_embeds:
            names = ("num_image_tokens", "add_image_embeds_to_time", "image_embed_scale")
            found |= dict.fromkeys(names, "cond_on_image_embeds=False")
        return found

    @nn.compact
    def __call__(
        self,
        x_BHWC: Array,
        condition_B: Array,
        image_embed_BD: Array | None = None,
        text_BLE: Array | None = None,
        text_mask_BL: Array | None = None,
        keep_image_B: Array | None = None,
        keep_text_B: Array | None = None,
        lowres_BHWC: Array | None = None,
        lowres_condition_B: Array | None = None,
        self_cond_BHWC: Array | None = None,
    ) -> Array:
        """The prediction (B, H, W, channels_out), float32; zeros from a network that is not
        trained.

        Args:
          x_BHWC: the noised image, as the noise scales it. condition_B: its timestep, from 0.
          image_embed_BD: image embeddings.
          text_BLE: text encodings; None: a call without texts. text_mask_BL: True at tokens; None:
            everywhere.
          keep_image_B, keep_text_B: conditioning masks, False in rows that lose their image
            embedding or text, for guidance. None: all True.
          lowres_BHWC: the smaller image at this one's size. lowres_condition_B: its timestep, where
            it is noised.
          self_cond_BHWC: the last estimate; None: zeros.

        Raises:
          UserError: an input that is missing, not wanted or of a wrong size.
        """
        image_embed_BD = sizes.check_inputs(
            self, x_BHWC, image_embed_BD, text_BLE, lowres_BHWC, lowres_condition_B, self_cond_BHWC
        )
        time, levels, middle = self._condition(
            condition_B,
            lowres_condition_B,
            (image_embed_BD, keep_image_B),
            (text_BLE, text_mask_BL, keep_text_B),
        )
        parts = [x_BHWC]
        if self.self_cond:
            parts.append(jnp.zeros_like(x_BHWC) if self_cond_BHWC is None else self_cond_BHWC)
        if lowres_BHWC is not None:
            parts.append(lowres_BHWC)
        x = first = self._first(jnp.concatenate([p.astype(self.dtype) for p in parts], axis=-1))
        if self.memory_efficient:
            x = self._block("first_block", x.shape[-1], 0, time)(x)
        x, skips = self._down(x, time, levels)
        x = self._middle(x, time, middle)
        x = self._up(x, skips, time, levels)
        x = self._block("final_block", self.dim, 0, time)(jnp.concatenate([x, first], axis=-1))
        if lowres_BHWC is not None:
            x = jnp.concatenate([x, lowres_BHWC.astype(x.dtype)], axis=-1)
        width = self.channels_out or self.channels
        x = resample.zero_conv(width, self.final_conv_kernel_size, "final_conv", self.dtype)(x)
        return x.astype(jnp.float32)

    def _first(self, x):
        width = self.init_dim or self.dim
        if self.init_cross_embed:
            kernels = self.init_cross_embed_kernel_sizes
            return resample.CrossEmbed(width, kernels, dtype=self.dtype, name="first_conv")(x)
        return conv(width, self.init_conv_kernel_size, "first_conv", dtype=self.dtype)(x)

    def _condition(self, level_B, lowres_level_B, image, text):
        """The vector of every block, and the tokens of the levels and of the middle."""
        token_dim, dim = self.cond_dim or self.dim, 4 * self.dim
        own = (self.num_time_tokens, token_dim, self.dtype)
        vector, tokens = TimeCondition(self.dim, dim, *own, name="time")(level_B)
        if self.lowres_noise_cond:
            noised = TimeCondition(self.dim, dim, 0, *own[1:], name="lowres_time")
            vector = vector + noised(lowres_level_B)[0]
        unused = self.is_initializing() and "unused_weights" in self.compat
        if self.cond_on_image_embeds or unused:
            images = ImageCondition(
                dim, self.num_image_tokens, token_dim, self.add_image_embeds_to_time,
                "image_tokens" not in self.compat, self.dtype, name="image",
            )  # fmt: skip
            embed, keep = image
            if embed is not None:
                embed = embed * self.image_embed_scale
            image_vector, image_tokens = images(embed, keep)
            vector = vector if image_vector is None else vector + image_vector
            if image_tokens is not None:
                tokens = jnp.concatenate([tokens, image_tokens], axis=1)
        middle = tokens
        if self.cond_on_text_encodings or unused:
            if self.is_initializing() and self.cond_on_text_encodings and text[0] is None:
                text = (jnp.zeros((len(level_B), 1, sizes.text_width(self))), None, None)
            texts = TextTokens(token_dim, self.max_text_len, self.dtype, name="text")
            text_tokens = texts(*text)
            if text_tokens is not None:
                middle = jnp.concatenate([tokens, text_tokens], axis=1)
                if self.text_at_levels:
                    tokens = middle
                if self.add_text_to_time:
                    pooled = TextVector(dim, self.dtype, name="text_vector")
                    vector = vector + pooled(text_tokens, text[2])
        normed = affine_norm("context_norm", self.dtype)(tokens)
        return vector, normed, affine_norm("middle_context_norm", self.dtype)(middle)

    def _down(self, x, time, tokens):
        """The feature map at the bottom, and the skip connections of each block and each level's
        attention.
        """
        skips, last = [], len(self.dim_mults) - 1
        for i, mult in enumerate(self.dim_mults):
            name = f"down_{i}"
            if self.memory_efficient:
                x = self._shrink(f"{name}_before", self.dim * mult)(x)
            width = x.shape[-1]
            x = self._block(f"{name}_first", width, i, time)(x)
            for n in range(sizes.per_level(self, "num_resnet_blocks")[i]):
                x = self._block(f"{name}_block_{n}", width, i, time, self._at(i, tokens))(x)
                skips.append(x)
            x = self._attend(f"{name}_attention", i, x)
            skips.append(x)
            keep_size = self.memory_efficient or i == last
            x = self._shrink(f"{name}_after", self.dim * mult, keep_size)(x)
        return x, skips

    def _middle(self, x, time, tokens):
        last, width = len(self.dim_mults) - 1, x.shape[-1]
        x = self._block("mid_first", width, last, time, tokens)(x)
        if self.attend_at_middle:
            x = x + self._self_attention("mid_attention", width)(x)
        return self._block("mid_second", width, last, time, tokens)(x)

    def _up(self, x, skips, time, tokens):
        """The feature map at full size, with those of all levels where they are combined; empties
        `skips`.
        """
        scale = 2**-0.5 if self.scale_skip_connection else 1.0
        enlarge = resample.PixelShuffle if self.pixel_shuffle_upsample else resample.Upsample
        widths, maps = (self.init_dim or self.dim, *(self.dim * m for m in self.dim_mults)), {}
        for i in reversed(range(len(self.dim_mults))):
            blocks = range(sizes.per_level(self, "num_resnet_blocks")[i])
            for name in ("first", *(f"block_{n}" for n in blocks)):
                x = jnp.concatenate([x, skips.pop() * scale], axis=-1)
                block = self._block(f"up_{i}_{name}", widths[i + 1], i, time, self._at(i, tokens))
                x = block(x)
            x = maps[i] = self._attend(f"up_{i}_attention", i, x)
            if i > 0 or self.memory_efficient:
                x = enlarge(widths[i], self.dtype, name=f"up_{i}_after")(x)
        if not self.combine_upsample_fmaps:
            return x
        combined = [
            GroupBlock(self.dim, dtype=self.dtype, name=f"combine_{i}")(
                resize_cubic(fmap, x.shape[1:3])
            )
            for i, fmap in maps.items()
        ]
        return jnp.concatenate([x, *combined], axis=-1)

    def _at(self, i, tokens):
        """The tokens, where level i has cross-attention."""
        return tokens if sizes.cross_levels(self)[i] else None

    def _attend(self, name, i, x):
        """The feature map after the attention of level i, where it has any."""
        if sizes.per_level(self, "self_attn")[i]:
            attention = self._self_attention(name, x.shape[-1])
        elif self.sparse_attn:
            make = self._recomputed(UnitLinearAttention)
            heads = (self.attn_heads, self.attn_dim_head)
            attention = make(x.shape[-1], *heads, self.dtype, name=name)
        else:
            return x
        return constrain(x + attention(x), "batch", None, None, None)

    def _self_attention(self, name, width):
        return self._recomputed(NullSelfAttention)(
            width, self.attn_heads, self.attn_dim_head, self.cosine_sim_self_attn,
            "squared_scale" in self.compat, self.attn_max_scores, self.dtype, name=name,
        )  # fmt: skip

    def _block(self, name, width, i, time, tokens=None):
        """A residual block with the groups of level i, as a function of the feature map alone."""
        module = self._recomputed(GroupResnetBlock)(
            width,
            (self.cross_attn_heads, self.cross_attn_dim_head) if tokens is not None else None,
            self.cosine_sim_cross_attn,
            sizes.per_level(self, "resnet_groups")[i],
            self.resnet_weight_standardization,
            self.attn_max_scores,
            self.dtype,
            name=name,
        )
        return lambda x: constrain(module(x, time, tokens), "batch", None, None, None)

    def _shrink(self, name, width, keep_size=False):
        if keep_size:
            return Dense(width, POINTWISE, dtype=self.dtype, name=name)
        if self.cross_embed_downsample:
            kernels = self.cross_embed_downsample_kernel_sizes
            return resample.CrossEmbed(width, kernels, stride=2, dtype=self.dtype, name=name)
        return resample.Downsample(width, self.dtype, name=name)

    def _recomputed(self, module):
        return module if self.remat == "none" else nn.remat(module, policy=REMAT[self.remat])


def DecoderUnet64(**fields: Any) -> DecoderUnet:
    """The 64x64 decoder (Ramesh et al. 2022, table 3): width 512, multipliers 1 to 4, 3 blocks,
    attention at 32, 16 and 8 pixels with heads of 64; `fields` replace its values.

    The widths are the paper's; the blocks are those of dalle2-pytorch.
    """
    values: dict[str, Any] = dict(dim=512, dim_mults=(1, 2, 3, 4), num_resnet_blocks=3)
    values |= dict(self_attn=(False, True, True, True), attn_dim_head=64, attn_heads=16)
    values |= dict(cond_on_image_embeds=True, image_embed_dim=1024)
    return DecoderUnet(**(values | fields))


def DecoderUnet256(**fields: Any) -> DecoderUnet:
    """The upsampler from 64 to 256 (table 3): width 320, multipliers 1 to 4, 2 blocks, no
    attention. `fields` replace its values.
    """
    values: dict[str, Any] = dict(dim=320, dim_mults=(1, 2, 3, 4), num_resnet_blocks=2)
    values |= dict(lowres_cond=True, attend_at_middle=False, cross_attn=False)
    return DecoderUnet(**(values | fields))


def DecoderUnet1024(**fields: Any) -> DecoderUnet:
    """The upsampler from 256 to 1024 (table 3): width 192, multipliers (1, 1, 2, 2, 4, 4), 2
    blocks, no attention. `fields` replace its values.
    """
    values: dict[str, Any] = dict(dim=192, dim_mults=(1, 1, 2, 2, 4, 4), num_resnet_blocks=2)
    values |= dict(lowres_cond=True, attend_at_middle=False, cross_attn=False)
    return DecoderUnet(**(values | fields))
