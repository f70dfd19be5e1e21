"""Checks of the fields and inputs of a U-Net, made before anything compiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.nn.resample import RESIZES
from t2i_jax.nn.transformer import REMAT
from t2i_jax.types import Array

COMPAT = ("mid_heads", "unused_weights")
PER_LEVEL = (
    "num_resnet_blocks", "layer_attns", "layer_attns_depth", "layer_cross_attns", "use_linear_attn",
    "use_linear_cross_attn", "ff_mult",
)  # fmt: skip
_POSITIVE = (
    "dim",
    "text_embed_dim",
    "cond_dim",
    "num_time_tokens",
    "learned_sinu_pos_emb_dim",
    "channels",
    "channels_out",
    "attn_dim_head",
    "attn_heads",
    "layer_mid_attns_depth",
    "max_text_len",
    "init_dim",
    "attn_pool_num_latents",
    "attn_max_scores",
)


def per_level(model: Any, field: str) -> tuple[Any, ...]:
    """The values of a field, one per level."""
    value = getattr(model, field)
    return value if isinstance(value, tuple) else (value,) * len(model.dim_mults)


def idle_kernels(model: Any) -> dict[str, str]:
    """The sizes of windows that a U-Net does not have, see `config.idle`."""
    has_several = model.init_cross_embed
    first = "init_conv_kernel_size" if has_several else "init_cross_embed_kernel_sizes"
    found = {first: f"init_cross_embed={has_several}"}
    if not model.cross_embed_downsample:
        found["cross_embed_downsample_kernel_sizes"] = "cross_embed_downsample=False"
    return found


def final_width(model: Any) -> int:
    """Channels of the feature map before the last block: of all that is concatenated there."""
    first = model.init_dim or model.dim
    up = first if model.memory_efficient else model.dim * model.dim_mults[0]
    combined = model.dim * len(model.dim_mults) if model.combine_upsample_fmaps else 0
    return up + combined + (first if model.init_conv_to_final_conv_residual else 0)


def check(model: Any) -> None:
    """Refuses fields that no network can be built of; lists become tuples.

    Raises:
      UserError: the field, its value and a remedy.
    """
    as_tuples(model)
    check_positive(model, _POSITIVE)
    check_levels(model, PER_LEVEL)
    if min(per_level(model, "ff_mult")) <= 0:
        raise UserError(f"ff_mult={model.ff_mult} is not positive; try 2.")
    check_kernels(model)
    if model.learned_sinu_pos_emb_dim % 2:
        even = model.learned_sinu_pos_emb_dim + 1
        raise UserError(f"learned_sinu_pos_emb_dim={even - 1} is odd, half are sines; try {even}.")
    if model.cond_images_channels < 0:
        raise UserError(
            f"cond_images_channels={model.cond_images_channels} is negative; give 0 for no such "
            "image."
        )
    if not 0 <= model.linear_attn_dropout < 1:
        raise UserError(
            f"linear_attn_dropout={model.linear_attn_dropout} is outside [0, 1); try 0.05."
        )
    config.some_of("compat", model.compat, COMPAT)
    config.one_of("remat", model.remat, REMAT)
    config.one_of("resize_mode", model.resize_mode, RESIZES)


def as_tuples(model: Any) -> None:
    """Makes the lists among the fields of a network tuples."""
    for field in config.fields_of(type(model)):
        if isinstance(getattr(model, field), list):
            object.__setattr__(model, field, tuple(getattr(model, field)))


def check_positive(model: Any, fields: Sequence[str]) -> None:
    """Refuses a field below 1; None is no number."""
    for field in fields:
        value = getattr(model, field)
        if value is not None and value <= 0:
            raise UserError(f"{field}={value} is not positive; give 1 or more.")


def check_levels(model: Any, fields: Sequence[str]) -> None:
    """Refuses `dim_mults` that are no widths, and fields that have not one value per level."""
    if not isinstance(model.dim_mults, tuple) or not model.dim_mults or min(model.dim_mults) < 1:
        raise UserError(
            f"dim_mults={model.dim_mults!r} are no widths; give one multiple per level, as (1, 2, "
            "4, 8)."
        )
    for field in fields:
        values, wanted = per_level(model, field), len(model.dim_mults)
        if None in values:
            continue
        if len(values) != wanted:
            raise UserError(
                f"{field}={values} has {len(values)} values for {wanted} levels; give {wanted}, or "
                "one."
            )
        if min(values) < (field == "layer_attns_depth"):
            raise UserError(f"{field}={values} has a value that is too small; give 1 or more.")


def check_kernels(model: Any) -> None:
    """Refuses windows that no convolution of the first, the last or a shrinking layer can have."""
    if (
        not model.init_cross_embed
        and model.init_conv_kernel_size % 2 == 0
        or model.init_conv_kernel_size < 1
    ):
        raise UserError(f"init_conv_kernel_size={model.init_conv_kernel_size} is not odd; try 7.")
    if model.final_conv_kernel_size % 2 == 0 or model.final_conv_kernel_size < 1:
        raise UserError(f"final_conv_kernel_size={model.final_conv_kernel_size} is not odd; try 3.")
    width = model.init_dim or model.dim
    if model.init_cross_embed:
        _check_cross_embed(
            "init_cross_embed_kernel_sizes", model.init_cross_embed_kernel_sizes, 1, width
        )
    if model.cross_embed_downsample:
        width = model.dim * min(model.dim_mults)
        _check_cross_embed(
            "cross_embed_downsample_kernel_sizes",
            model.cross_embed_downsample_kernel_sizes,
            0,
            width,
        )


def _check_cross_embed(field, kernels, remainder, width):
    if not kernels or min(kernels) < 1 or any(kernel % 2 != remainder for kernel in kernels):
        kind, example = ("odd", (3, 7, 15)) if remainder else ("even", (2, 4))
        raise UserError(f"{field}={kernels} are not all {kind}; try {example}.")
    if width < 2 ** (len(kernels) - 1):
        raise UserError(
            f"{field}={kernels} do not fit {width} channels, which they share; give fewer kernels."
        )


def check_image(model: Any, x_BHWC: Array) -> None:
    """Refuses an image of other channels than the network's, or of sides that it does not divide.

    Raises:
      UserError: what is wrong and the remedy.
    """
    _, rows, columns, channels = x_BHWC.shape
    if channels != model.channels:
        raise UserError(f"x has {channels} channels; the network wants channels={model.channels}.")
    if rows % model.multiple or columns % model.multiple:
        raise UserError(
            f"x is {rows}x{columns}; with these levels its sides must be multiples of "
            f"{model.multiple}."
        )


def check_lowres(x_BHWC: Array, lowres_BHWC: Array | None) -> None:
    """Refuses a smaller image that has not the shape of x.

    Raises:
      UserError: both shapes.
    """
    if lowres_BHWC is not None and lowres_BHWC.shape != x_BHWC.shape:
        raise UserError(
            f"lowres has shape {lowres_BHWC.shape}; resize it to x first, {x_BHWC.shape}."
        )


def check_self_cond(model: Any, self_cond_BHWC: Array | None) -> None:
    """Refuses a last estimate that the network does not take.

    Raises:
      UserError: it is given.
    """
    if self_cond_BHWC is not None and not model.self_cond:
        raise UserError(
            "self_cond=False does not fit a call with self_cond_BHWC; leave it out or build with "
            "True."
        )


def check_inputs(
    model: Any,
    x_BHWC: Array,
    text_embeds_BLD: Array | None,
    lowres_BHWC: Array | None,
    lowres_condition_B: Array | None,
    cond_image_BHWC: Array | None,
    self_cond_BHWC: Array | None,
) -> None:
    """Refuses inputs that the network does not take, a missing input that it needs, and wrong
    shapes.

    Raises:
      UserError: what is wrong and the remedy.
    """
    check_image(model, x_BHWC)
    width = None if text_embeds_BLD is None else text_embeds_BLD.shape[-1]
    if model.cond_on_text and width not in (None, model.text_embed_dim):
        raise UserError(
            f"text_embeds has width {width}; the network wants "
            f"text_embed_dim={model.text_embed_dim}."
        )
    given = lowres_BHWC is not None, lowres_condition_B is not None
    if given != (model.lowres_cond,) * 2:
        remedy = (
            "give lowres_BHWC and lowres_condition_B"
            if model.lowres_cond
            else "give no lowres image or level"
        )
        raise UserError(
            f"lowres_cond={model.lowres_cond} does not fit what the network was called with; "
            f"{remedy}."
        )
    check_lowres(x_BHWC, lowres_BHWC)
    got = 0 if cond_image_BHWC is None else cond_image_BHWC.shape[-1]
    if got != model.cond_images_channels:
        raise UserError(
            f"cond_image has {got} channels; the network wants {model.cond_images_channels} (0: "
            "none)."
        )
    check_self_cond(model, self_cond_BHWC)
