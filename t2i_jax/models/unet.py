"""The U-Net of imagen-pytorch 2.1.0, weight for weight: the Imagen stages (Saharia et al. 2022,
appendix F).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.models import unet_sizes as sizes
from t2i_jax.nn import limits, resample
from t2i_jax.nn.conditioning import LevelCondition, TextCondition
from t2i_jax.nn.conv import conv
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.resnet_block import Block, ResnetBlock, ResnetStack
from t2i_jax.nn.transformer import REMAT
from t2i_jax.nn.unet_attention import MAX_SCORES, TransformerBlock, affine_norm
from t2i_jax.sharding import constrain
from t2i_jax.types import Array

MID_HEADS = (8, 64)  # heads and their width in the package's middle blocks, whatever its fields


class Unet(nn.Module):
    """The prediction of a diffusion model from a noised image, its noise level and a text.

        levels = (False, True, True, True)
        unet = Unet(dim=128, dim_mults=(1, 2, 4, 8), num_resnet_blocks=3, text_embed_dim=1024,
                    layer_attns=levels, layer_cross_attns=levels)
        params = unet.init(key, x_BHWC, condition_B)["params"]
        out_BHWC = unet.apply({"params": params}, x_BHWC, condition_B, text_BLD, text_mask_BL)

    A field marked "per level" is one value, or a tuple with one per entry of `dim_mults`. Images
    need not be square; their sides are multiples of `multiple`.

    Attributes:
      dim, dim_mults: level i is dim * dim_mults[i] wide. init_dim: width of the first convolution;
        None: dim.
      channels: channels of the image. channels_out: channels of the output; None: channels.
      text_embed_dim: width of the text embeddings. max_text_len: texts are cut, or filled up with
        learnt tokens.
      cond_on_text: whether there are texts at all.
      cond_dim: width of the condition's tokens; None: dim. num_time_tokens: number of tokens of the
        noise level.
      learned_sinu_pos_emb_dim: Fourier features of the noise level.
      attn_pool_text, attn_pool_num_latents: whether the text is resampled, and to how many tokens
        (and four more).
      lowres_cond: whether it enlarges a smaller image, which comes noised, with its own noise
        level.
      cond_images_channels: channels of an image to condition on; 0: none. resize_mode: how that
        image is resized, see `resample.resize`. self_cond: whether the network sees its own last
        estimate.
      num_resnet_blocks: residual blocks after each level's first (per level).
      layer_attns, layer_attns_depth: full self-attention at a level, and how many layers of it (per
        level).
      use_linear_attn: linear self-attention where there is no full one (per level).
      layer_cross_attns: cross-attention in a level's first block (per level).
        use_linear_cross_attn: linear cross-attention there instead, also where `layer_cross_attns`
        has none (per level).
      attend_at_middle, layer_mid_attns_depth: self-attention at the bottom, and its layers.
      attn_heads, attn_dim_head: heads and their width. ff_mult: inner width of the feed-forwards
        beside attention at the levels (per level); it is 2 in the middle. linear_attn_dropout:
        inside linear attention, in training.
      init_cross_embed, init_cross_embed_kernel_sizes: the first convolution has several kernel
        sizes. init_conv_kernel_size: the size of its kernel, where it has one alone.
        cross_embed_downsample, cross_embed_downsample_kernel_sizes: the convolutions that shrink
        have several kernel sizes.
      memory_efficient: each level downsamples its input first, not its output last; there is a
        block before them.
      init_conv_to_final_conv_residual: the end sees the first convolution's output.
      use_global_context_attn: a global gate in each residual block that has no cross-attention.
      scale_skip_connection: skip connections are divided by sqrt(2).
      final_resnet_block: a residual block before the last convolution. final_conv_kernel_size: side
        of the last convolution's window.
      combine_upsample_fmaps: the end sees the feature maps of all levels of the way up.
      pixel_shuffle_upsample: upsampling by pixel shuffle; else by nearest and a convolution.
      compat: errors of the package that are kept: "mid_heads", the middle's cross-attention has 8
        heads of 64 whatever the fields say; "unused_weights", a network without texts has the
        weights for absent texts all the same. Weights of the package come with the values they
        need.
      attn_max_scores: scores of an image, queries times keys, above which attention is computed
        in blocks of queries (see `unet_attention.attend`).
      remat: remat policy of each block: "none", "full" (recomputes all), or "dots" (keeps only
        matrix products).
      scan_blocks: a level's blocks after its first are one loop: the same numbers, compiled in a
        fraction of the time where there are many blocks, at the price of a copy of their weights
        and feature maps.
      dtype: of the computation; norms, softmax and the output are float32.
    """

    dim: int
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    text_embed_dim: int = 768
    num_resnet_blocks: int | tuple[int, ...] = 1
    cond_dim: int | None = None
    num_time_tokens: int = 2
    learned_sinu_pos_emb_dim: int = 16
    cond_images_channels: int = 0
    channels: int = 3
    channels_out: int | None = None
    attn_dim_head: int = 64
    attn_heads: int = 8
    ff_mult: float | tuple[float, ...] = 2.0
    lowres_cond: bool = False
    layer_attns: bool | tuple[bool, ...] = True
    layer_attns_depth: int | tuple[int, ...] = 1
    layer_mid_attns_depth: int = 1
    attend_at_middle: bool = True
    layer_cross_attns: bool | tuple[bool, ...] = True
    use_linear_attn: bool | tuple[bool, ...] = False
    use_linear_cross_attn: bool | tuple[bool, ...] = False
    cond_on_text: bool = True
    max_text_len: int = 256
    init_dim: int | None = None
    init_conv_kernel_size: int = 7
    init_cross_embed: bool = True
    init_cross_embed_kernel_sizes: tuple[int, ...] = (3, 7, 15)
    cross_embed_downsample: bool = False
    cross_embed_downsample_kernel_sizes: tuple[int, ...] = (2, 4)
    attn_pool_text: bool = True
    attn_pool_num_latents: int = 32
    memory_efficient: bool = False
    init_conv_to_final_conv_residual: bool = False
    use_global_context_attn: bool = True
    scale_skip_connection: bool = True
    final_resnet_block: bool = True
    final_conv_kernel_size: int = 3
    self_cond: bool = False
    resize_mode: str = "nearest"
    combine_upsample_fmaps: bool = False
    pixel_shuffle_upsample: bool = True
    linear_attn_dropout: float = 0.05
    compat: tuple[str, ...] = ()
    attn_max_scores: int = MAX_SCORES
    remat: str = "none"
    scan_blocks: bool = False
    dtype: str = "float32"

    trains = True  # it has weights to train

    def __post_init__(self):
        limits.check(self)
        sizes.check(self)
        super().__post_init__()

    @property
    def multiple(self) -> int:
        """The number of pixels of which the sides of an image must be multiples."""
        return 2 ** (len(self.dim_mults) - (not self.memory_efficient))

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = sizes.idle_kernels(self)
        if not self.attn_pool_text:
            found["attn_pool_num_latents"] = "attn_pool_text=False"
        if not self.attend_at_middle:
            found["layer_mid_attns_depth"] = "attend_at_middle=False"
        if not self.cond_images_channels:
            found["resize_mode"] = "cond_images_channels=0"
        if not any(sizes.per_level(self, "use_linear_attn")):
            found["linear_attn_dropout"] = "use_linear_attn=False"
        return found

    @nn.compact
    def __call__(
        self,
        x_BHWC: Array,
        condition_B: Array,
        text_embeds_BLD: Array | None = None,
        text_mask_BL: Array | None = None,
        keep_B: Array | None = None,
        lowres_BHWC: Array | None = None,
        lowres_condition_B: Array | None = None,
        cond_image_BHWC: Array | None = None,
        self_cond_BHWC: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """The prediction (B, H, W, channels_out), float32; zeros from a network that is not
        trained.

        Args:
          x_BHWC: the noised image, as the noise scales it.
          condition_B: its noise level: the log-SNR, or a quarter of log sigma (`diffusion.noise`).
          text_embeds_BLD: text embeddings; None: a call without texts, as of a network that has
            none.
          text_mask_BL: True where there is text; None: everywhere.
          keep_B: conditioning mask, False in rows whose text is dropped, for guidance. None: all
            True.
          lowres_BHWC, lowres_condition_B: the smaller image at this one's size, noised, and its
            log-SNR.
          cond_image_BHWC: an image to condition on, of any size.
          self_cond_BHWC: the last estimate; None: zeros.
          deterministic: False in training: linear attention then has dropout and needs the rng
            "dropout".

        Raises:
          UserError: an image that is missing, not wanted or of a wrong size, or text of another
            width.
        """
        images = (lowres_BHWC, lowres_condition_B, cond_image_BHWC, self_cond_BHWC)
        sizes.check_inputs(self, x_BHWC, text_embeds_BLD, *images)
        condition = self._condition(
            condition_B, lowres_condition_B, text_embeds_BLD, text_mask_BL, keep_B
        )
        x = first = self._first(self._inputs(x_BHWC, lowres_BHWC, cond_image_BHWC, self_cond_BHWC))
        if self.memory_efficient:
            x = self._block(
                "first_block", x.shape[-1], condition, gate=self.use_global_context_attn
            )(x)
        x, skips = self._down(x, condition, deterministic)
        x = self._middle(x, condition)
        x = self._up(x, skips, condition, deterministic)
        if self.init_conv_to_final_conv_residual:
            x = jnp.concatenate([x, first], axis=-1)
        if self.final_resnet_block:
            x = self._block("final_block", self.dim, condition, gate=True)(x)
        if lowres_BHWC is not None:
            x = jnp.concatenate([x, lowres_BHWC.astype(x.dtype)], axis=-1)
        width = self.channels_out or self.channels
        x = resample.zero_conv(width, self.final_conv_kernel_size, "final_conv", self.dtype)(x)
        return x.astype(jnp.float32)

    def _inputs(self, x, lowres, cond_image, self_cond):
        parts = [x]
        if cond_image is not None:
            parts.insert(
                0, resample.resize(cond_image.astype(jnp.float32), x.shape[1:3], self.resize_mode)
            )
        if self.self_cond:
            parts.append(jnp.zeros_like(x) if self_cond is None else self_cond)
        if self.lowres_cond:
            parts.append(lowres)
        return jnp.concatenate([part.astype(self.dtype) for part in parts], axis=-1)

    def _first(self, x):
        width = self.init_dim or self.dim
        if self.init_cross_embed:
            kernels = self.init_cross_embed_kernel_sizes
            return resample.CrossEmbed(width, kernels, dtype=self.dtype, name="first_conv")(x)
        return conv(width, self.init_conv_kernel_size, "first_conv", dtype=self.dtype)(x)

    def _condition(self, level_B, lowres_level_B, text, mask, keep_B):
        """The vector that conditions every block and the tokens of cross-attention."""
        token_dim, dim = self.cond_dim or self.dim, self.dim * (8 if self.lowres_cond else 4)
        own = (self.learned_sinu_pos_emb_dim, dim, self.num_time_tokens, token_dim, self.dtype)
        vector, tokens = LevelCondition(*own, name="level")(level_B)
        if self.lowres_cond:
            lowres_vector, lowres_tokens = LevelCondition(*own, name="lowres_level")(lowres_level_B)
            vector, tokens = (
                vector + lowres_vector,
                jnp.concatenate([tokens, lowres_tokens], axis=1),
            )
        latents = self.attn_pool_num_latents if self.attn_pool_text else None
        heads = (self.attn_heads, self.attn_dim_head)
        texts = TextCondition(
            token_dim, dim, self.max_text_len, latents, *heads, self.dtype, name="text"
        )
        if self.is_initializing() and self.cond_on_text and text is None:
            text = jnp.zeros((level_B.shape[0], 1, self.text_embed_dim))
        if self.is_initializing() and "unused_weights" in self.compat and not self.cond_on_text:
            texts(None, None, None)
        if text is not None and self.cond_on_text:
            text_vector, text_tokens = texts(text, mask, keep_B)
            vector, tokens = vector + text_vector, jnp.concatenate([tokens, text_tokens], axis=1)
        return vector, affine_norm("context_norm", self.dtype)(tokens)

    def _down(self, x, condition, deterministic):
        """The feature map at the bottom, and the skip connections of each block and each level's
        attention.
        """
        skips, last = [], len(self.dim_mults) - 1
        for i, mult in enumerate(self.dim_mults):
            if self.memory_efficient:
                x = self._shrink(f"down_{i}_before", self.dim * mult)(x)
            first, further, attention = self._level(
                f"down_{i}", i, x.shape[-1], condition, deterministic
            )
            x, passed = further(first(x))
            x = attention(x)
            skips += [*passed, x]
            if not self.memory_efficient:
                x = self._shrink(f"down_{i}_after", self.dim * mult, keep_size=i == last)(x)
        return x, skips

    def _middle(self, x, condition):
        heads = MID_HEADS if "mid_heads" in self.compat else None
        x = self._block("mid_first", x.shape[-1], condition, "softmax", heads=heads)(x)
        if self.attend_at_middle:
            x = self._transformer("mid_attention", x.shape[-1], self.layer_mid_attns_depth, 2)(x)
        return self._block("mid_second", x.shape[-1], condition, "softmax", heads=heads)(x)

    def _up(self, x, skips, condition, deterministic):
        """The feature map at full size, with those of all levels where they are combined; empties
        `skips`.
        """
        scale = 2**-0.5 if self.scale_skip_connection else 1.0
        enlarge, maps = (
            resample.PixelShuffle if self.pixel_shuffle_upsample else resample.Upsample,
            [],
        )
        widths = (self.init_dim or self.dim, *(self.dim * mult for mult in self.dim_mults))
        for i in reversed(range(len(self.dim_mults))):
            first, further, attention = self._level(
                f"up_{i}", i, widths[i + 1], condition, deterministic
            )
            joined = [
                skips.pop() * scale
                for _ in range(1 + sizes.per_level(self, "num_resnet_blocks")[i])
            ]
            x, _ = further(first(jnp.concatenate([x, joined[0]], axis=-1)), joined[1:])
            x = attention(x)
            maps.append(x)
            if i > 0 or self.memory_efficient:
                x = enlarge(widths[i], self.dtype, name=f"up_{i}_after")(x)
        if not self.combine_upsample_fmaps:
            return x
        combined = [
            Block(self.dim, self.dtype, name=f"combine_{len(maps) - 1 - n}")(
                resample.resize(fmap, x.shape[1:3])
            )
            for n, fmap in enumerate(maps)
        ]
        return jnp.concatenate([x, *combined], axis=-1)

    def _level(self, name, i, width, condition, deterministic):
        """The first block of a level, its further blocks (see `_further`) and its attention, as
        functions of the feature map.
        """

        def at(field):
            return sizes.per_level(self, field)[i]

        cross = (
            "linear"
            if at("use_linear_cross_attn")
            else "softmax"
            if at("layer_cross_attns")
            else None
        )
        first = self._block(f"{name}_first", width, condition, cross)
        further = self._further(f"{name}_block", at("num_resnet_blocks"), width, condition)
        linear = not at("layer_attns")
        if linear and not at("use_linear_attn"):
            return first, further, lambda x: x
        dropout = 0.0 if deterministic else self.linear_attn_dropout
        depth = at("layer_attns_depth")
        attention = self._transformer(
            f"{name}_attention", width, depth, at("ff_mult"), linear, dropout
        )

        def attend(x):
            return constrain(attention(x, condition[1]), "batch", None, None, None)

        return first, further, attend

    def _further(self, name, count, width, condition):
        """The blocks of a level after its first, as a function of the feature map and of skip
        connections, one each.
        """
        names, heads = (
            tuple(f"{name}_{n}" for n in range(count)),
            (self.attn_heads, self.attn_dim_head),
        )
        gate, scan = self.use_global_context_attn, self.scan_blocks
        stack = ResnetStack(
            names, width, gate, *heads, self.attn_max_scores, self.remat, scan, self.dtype
        )
        nn.share_scope(self, stack)  # its blocks are parameters of the network itself
        return lambda x, joined=None: stack(x, *condition, joined)

    def _block(self, name, width, condition, cross=None, gate=False, heads=None):
        """A residual block as a function of the feature map alone."""
        heads = heads or (self.attn_heads, self.attn_dim_head)
        make = self._recomputed(ResnetBlock)
        module = make(width, cross, gate, *heads, self.attn_max_scores, self.dtype, name=name)
        return lambda x: constrain(module(x, *condition), "batch", None, None, None)

    def _transformer(self, name, width, depth, ff_mult, linear=False, dropout=0.0):
        heads, hidden = (self.attn_heads, self.attn_dim_head), int(width * ff_mult)
        make = self._recomputed(TransformerBlock)
        return make(
            width,
            depth,
            *heads,
            hidden,
            linear,
            dropout,
            self.attn_max_scores,
            self.dtype,
            name=name,
        )

    def _shrink(self, name, width, keep_size=False):
        if keep_size:
            return resample.Widen(width, self.dtype, name=name)
        if self.cross_embed_downsample:
            kernels = self.cross_embed_downsample_kernel_sizes
            return resample.CrossEmbed(width, kernels, stride=2, dtype=self.dtype, name=name)
        return resample.Downsample(width, self.dtype, name=name)

    def _recomputed(self, module):
        return module if self.remat == "none" else nn.remat(module, policy=REMAT[self.remat])


def BaseUnet64(**fields: Any) -> Unet:
    """The 64x64 stage (Saharia et al. 2022, appendix F.1): 1.6 billion parameters. `fields` replace
    its values.
    """
    levels = (False, True, True, True)
    values: dict[str, Any] = dict(dim=512, dim_mults=(1, 2, 3, 4), num_resnet_blocks=3)
    values |= dict(layer_attns=levels, layer_cross_attns=levels)
    return Unet(**(values | fields))


def SRUnet256(**fields: Any) -> Unet:
    """The stage from 64 to 256 (appendix F.2, Efficient U-Net); within a cascade with
    lowres_cond=True.
    """
    deepest = (False, False, False, True)
    values: dict[str, Any] = dict(dim=128, dim_mults=(1, 2, 4, 8), num_resnet_blocks=(2, 4, 8, 8))
    values |= dict(layer_attns=deepest, layer_cross_attns=deepest, memory_efficient=True)
    return Unet(**(values | fields))


def SRUnet1024(**fields: Any) -> Unet:
    """The stage from 256 to 1024 (appendix F.3): as `SRUnet256` without self-attention at the
    levels.
    """
    return SRUnet256(**(dict(layer_attns=False) | fields))


class NullUnet(nn.Module):
    """A stage that is left out: the network returns its input. Its one parameter has no effect and
    is never trained.
    """

    trains = False
    multiple = 1  # any image size goes through
    lowres_cond = False  # it can only be a first stage
    cond_images_channels = 0
    cond_on_image_embeds = cond_on_text_encodings = False
    self_cond = False

    @nn.compact
    def __call__(self, x_BHWC: Array, *conditions: Any, **more: Any) -> Array:
        """x, unchanged."""
        parameter(self, "dummy_parameter", nn.initializers.zeros, (1,), jnp.float32)
        return x_BHWC
