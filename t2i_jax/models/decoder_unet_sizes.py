"""Checks of the fields and inputs of DALL-E 2's U-Net, made before anything compiles."""

from __future__ import annotations

import math
from typing import Any

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import unet_sizes
from t2i_jax.models.unet_sizes import check_image, check_lowres, check_self_cond, per_level
from t2i_jax.nn import limits
from t2i_jax.nn.transformer import REMAT
from t2i_jax.types import Array

COMPAT = ("squared_scale", "image_tokens", "unused_weights")
PER_LEVEL = ("num_resnet_blocks", "self_attn", "resnet_groups", "cross_attn")
_COMBINED_GROUPS = 8  # of the blocks that combine feature maps, whatever resnet_groups says
_POSITIVE = (
    "dim", "image_embed_dim", "text_embed_dim", "cond_dim", "num_image_tokens", "num_time_tokens",
    "channels", "channels_out", "attn_dim_head", "attn_heads", "cross_attn_heads",
    "cross_attn_dim_head", "max_text_len", "init_dim", "attn_max_scores",
)  # fmt: skip


def cross_levels(model: Any) -> tuple[bool, ...]:
    """Whether each level has cross-attention."""
    if model.cross_attn is None:
        return tuple(i > 0 for i in range(len(model.dim_mults)))
    return per_level(model, "cross_attn")


def text_width(model: Any) -> int:
    """Width of the encodings of texts.

    Raises:
      UserError: it is not known.
    """
    if model.text_embed_dim is None:
        raise UserError("text_embed_dim=None; give the width of the text encodings, or some.")
    return model.text_embed_dim


def check(model: Any) -> None:
    """Refuses fields that no network can be built of; lists become tuples.

    Raises:
      UserError: the field, its value and a remedy.
    """
    limits.check(model)
    unet_sizes.as_tuples(model)
    unet_sizes.check_positive(model, _POSITIVE)
    if model.dim < 4:
        raise UserError(f"dim={model.dim} is too small for a sinusoid of the timestep; give 4.")
    unet_sizes.check_levels(model, PER_LEVEL)
    unet_sizes.check_kernels(model)
    _check_groups(model)
    _check_conditions(model)
    config.some_of("compat", model.compat, COMPAT)
    config.one_of("remat", model.remat, REMAT)


def _check_groups(model):
    """Refuses groups of a group norm that do not divide each width that it sees."""
    first = model.init_dim or model.dim
    groups = per_level(model, "resnet_groups")
    widths = [model.dim * mult for mult in model.dim_mults]
    inputs = widths if model.memory_efficient else [first, *widths[:-1]]
    for i, (own, width, wide) in enumerate(zip(groups, widths, inputs, strict=True)):
        for one in (width, wide):
            if own < 1 or one % own:
                raise UserError(
                    f"resnet_groups={model.resnet_groups} does not divide the {one} channels of "
                    f"level {i}; give a divisor."
                )
    if first % groups[0] or model.dim % groups[0]:
        raise UserError(
            f"resnet_groups={model.resnet_groups} does not divide the {model.dim} channels of the "
            "last block; give a divisor."
        )
    if model.combine_upsample_fmaps and model.dim % _COMBINED_GROUPS:
        raise UserError(
            f"combine_upsample_fmaps=True needs dim={model.dim} to be a multiple of "
            f"{_COMBINED_GROUPS}; leave it out."
        )


def _check_conditions(model):
    if not 0 < model.image_embed_scale < math.inf:
        raise UserError(
            f"image_embed_scale={model.image_embed_scale} leaves no embedding; give 1.0, or the "
            "root of its width."
        )
    width = model.cond_dim or model.dim
    if "image_tokens" in model.compat and model.image_embed_dim != width:
        raise UserError(
            f"compat='image_tokens' with image_embed_dim={model.image_embed_dim} and tokens of "
            f"width {width}; give cond_dim={model.image_embed_dim}."
        )
    if model.lowres_noise_cond and not model.lowres_cond:
        raise UserError(
            "lowres_noise_cond=True with lowres_cond=False has no smaller image; leave it out."
        )
    for name in ("text_at_levels", "add_text_to_time"):
        if getattr(model, name) and not model.cond_on_text_encodings:
            raise UserError(
                f"{name}=True with cond_on_text_encodings=False has no text; leave it out."
            )
    if model.text_at_levels and not any(cross_levels(model)):
        raise UserError(
            f"text_at_levels=True with cross_attn={model.cross_attn} has no level that could see "
            "the text; give cross_attn=True."
        )


def check_inputs(
    model: Any,
    x_BHWC: Array,
    image_embed_BD: Array | None,
    text_BLE: Array | None,
    lowres_BHWC: Array | None,
    lowres_condition_B: Array | None,
    self_cond_BHWC: Array | None,
) -> Array | None:
    """The image embedding that the network uses; None where it uses none.

    Raises:
      UserError: an input that is missing, not wanted or of a wrong size, and the remedy.
    """
    check_image(model, x_BHWC)
    for name, given, wanted in (
        ("image_embed", image_embed_BD, model.image_embed_dim),
        ("text", text_BLE, model.text_embed_dim),
    ):
        used = model.cond_on_image_embeds if name == "image_embed" else model.cond_on_text_encodings
        if used and given is not None and wanted not in (None, given.shape[-1]):
            raise UserError(
                f"{name} has width {given.shape[-1]}; the network wants {wanted}; give those that "
                "it was made for."
            )
    if model.cond_on_image_embeds and image_embed_BD is None:
        raise UserError(
            "image_embed=None: the network is conditioned on image embeddings; give it."
        )
    for name, given, wanted in (
        ("lowres", lowres_BHWC, model.lowres_cond),
        ("lowres_condition", lowres_condition_B, model.lowres_noise_cond),
    ):
        if (given is not None) != wanted:
            remedy = "give it" if wanted else "leave it out"
            raise UserError(
                f"{name} does not fit the network (lowres_cond={model.lowres_cond}, "
                f"lowres_noise_cond={model.lowres_noise_cond}); {remedy}."
            )
    check_lowres(x_BHWC, lowres_BHWC)
    check_self_cond(model, self_cond_BHWC)
    return image_embed_BD if model.cond_on_image_embeds else None
