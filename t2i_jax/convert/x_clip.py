"""CLIP of x-clip 0.14.4 (`dalle2_pytorch.CLIP` is the same class)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import sharding
from t2i_jax.config import fields_of
from t2i_jax.convert import arguments
from t2i_jax.convert.engine import (
    CONV1X1,
    DEPTHWISE,
    LINEAR,
    Entry,
    Network,
    Row,
    State,
    Unused,
    part,
)
from t2i_jax.errors import UserError
from t2i_jax.models.clip import CLIP
from t2i_jax.tracing import traced_once

WITHIN = "clip.clip."  # how its names begin within the adapter of dalle2-pytorch
_TEXT, _VISUAL = "text_transformer", "visual_transformer"
_FIRST = {_TEXT: "token_emb.weight", _VISUAL: "to_tokens.1.weight"}  # an array of each
# Where the package saves them again, with its masked language modelling and `x_clip_ssl`.
_AGAIN = {
    _TEXT: ("mlm.transformer",),
    _VISUAL: ("visual_ssl.net", "visual_ssl.net.net", "visual_ssl.online_encoder.net"),
}


def table(model: CLIP) -> list[Row]:
    """The entries of one configuration; the package saves its text transformer twice where there is
    masked language modelling.
    """
    text = _text(_TEXT, model)
    entries: list[Row] = [Entry("temperature", "temperature"), *text]
    entries += [
        Entry(f"{_VISUAL}.to_tokens.1.weight", "visual/to_tokens/kernel", LINEAR),
        Entry(f"{_VISUAL}.to_tokens.1.bias", "visual/to_tokens/bias"),
        Entry(f"{_VISUAL}.pos_emb.weight", "visual/positions"),
        *_transformer(_VISUAL, "visual", model.visual_enc_depth),
        Entry(f"{_VISUAL}.to_cls_tokens.1.weight", "visual/to_cls_tokens/kernel", LINEAR),
    ]
    if model.use_mlm:
        entries += _text("mlm.transformer", model)
        entries += [
            Entry("mlm.to_logits.weight", "mlm/kernel", LINEAR),
            Entry("mlm.to_logits.bias", "mlm/bias"),
        ]
    for name in ("to_text_latent", "to_visual_latent"):
        for place in (name, f"{name}_extra"):
            if name == "to_visual_latent" and model.downsample_image_embeds:
                entries += [
                    Entry(f"{place}.1.weight", f"{place}/depthwise", DEPTHWISE),
                    Entry(f"{place}.2.weight", f"{place}/pointwise/kernel", CONV1X1),
                    Entry(f"{place}.2.bias", f"{place}/pointwise/bias"),
                ]
            else:
                entries.append(Entry(f"{place}.weight", f"{place}/kernel", LINEAR))
    return entries


def _text(torch, model):
    entries: list[Row] = [Entry(f"{torch}.token_emb.weight", "text/embedding")]
    if not model.text_causal_mask:
        entries.append(Entry(f"{torch}.cls_token", "text/cls"))
    if model.text_rotary_pos_emb:
        rates = _rates(min(model.text_dim_head, 32))
        entries.append(Unused(f"{torch}.rotary_pos_emb.inv_freq", rates))
    else:
        entries.append(Entry(f"{torch}.abs_pos_emb.weight", "text/positions"))
    return [*entries, *_transformer(torch, "text", model.text_enc_depth)]


def _rates(width):
    """The package's rates of rotation: powers rounded to float32, as PyTorch takes them."""
    exponents = np.arange(0, width, 2).astype(np.float32) / width
    return np.float32(1) / (10000.0 ** exponents.astype(np.float64)).astype(np.float32)


# Within a layer: (name, place, layout).
_LAYER = (
    ("0.norm.g", "norm_attention/scale", None),
    ("0.fn.to_qkv.weight", "to_qkv/kernel", LINEAR),
    ("0.fn.to_out.0.weight", "to_out/kernel", LINEAR),
    ("0.fn.to_out.1.g", "norm_out/scale", None),
    ("1.norm.g", "norm_mlp/scale", None),
    ("1.fn.net.0.weight", "wide/kernel", LINEAR),
    ("1.fn.net.2.g", "norm_hidden/scale", None),
    ("1.fn.net.4.weight", "narrow/kernel", LINEAR),
)


def _transformer(torch, ours, depth):
    entries = [
        Entry(f"{torch}.transformer.{name}.g", f"{ours}/transformer/{name}/scale")
        for name in ("norm_in", "norm_out")
    ]
    for i in range(depth):
        for name, place, layout in _LAYER:
            keywords = {} if layout is None else {"layout": layout}
            key, path = f"{torch}.transformer.layers.{i}.{name}", f"{ours}/transformer/layers/"
            entries.append(Entry(key, path + place, layer=i, **keywords))
    return entries


def live(module: Any) -> dict[str, Any]:
    """The fields that a live network tells beside its weights, and in "settings" arguments that
    are the training's.

    Raises:
      UserError: an option that has no form here.
    """
    said = arguments.readable(_ARGUMENTS, module)
    if not said.get("use_all_token_embeds"):  # they choose among the tokens that it compares
        said = {name: value for name, value in said.items() if not name.endswith("has_cls_token")}
    arguments.check("CLIP", arguments.X_CLIP, said)
    for trunk, readers in _TRANSFORMER.items():
        inside = arguments.readable(readers, module)
        arguments.check(f"{trunk} of CLIP", arguments.X_CLIP_TRANSFORMER, inside)
    words = arguments.readable(_MLM, module)
    arguments.check("MLM of CLIP", arguments.X_CLIP_MLM, words)
    said |= {f"mlm_{name}": value for name, value in words.items()}
    network = {name: said[name] for name in _TOLD if name in said}
    settings = {
        name: value for name, value in said.items() if name in _SETTINGS and value is not None
    }
    return {**network, "settings": settings}


_TOLD = (
    "text_heads", "text_dim_head", "visual_heads", "visual_dim_head", "text_eos_id", "text_seq_len",
    "text_pad_id", "text_encode_without_mask", "visual_patch_dropout", "use_all_token_embeds",
    "text_has_cls_token", "visual_has_cls_token",
    "extra_latent_projection", "channels",
)  # fmt: skip
_SETTINGS = (
    "decoupled_contrastive_learning", "text_ssl_loss_weight", "image_ssl_loss_weight",
    "multiview_loss_weight", "sim_reg_loss_weight", "simclr_temperature", "mlm_mask_prob",
    "mlm_replace_prob", "mlm_random_token_prob", "mlm_mask_token_id", "mlm_mask_ignore_token_ids",
    "mlm_pad_token_id", "visual_ssl_hidden_layer",
)  # fmt: skip


def _attention(module, trunk):
    return getattr(module, trunk).transformer.layers[0][0].fn


def _projected(ssl):
    """The module of SimSiam or SimCLR that computes the projected vectors."""
    return getattr(ssl, "online_encoder", None) or ssl.net


def _own_or_none(module, trunk, kind):
    """The name of a transformer; None for the package's own."""
    found = type(getattr(module, trunk)).__name__
    return None if found == kind else found


_TRANSFORMER = {
    _TEXT: {"attn_dropout": lambda module: _attention(module, _TEXT).dropout.p},
    _VISUAL: {
        "attn_dropout": lambda module: _attention(module, _VISUAL).dropout.p,
        "causal": lambda module: _attention(module, _VISUAL).causal,
    },
}

_ARGUMENTS = {
    "text_encoder": lambda module: _own_or_none(module, _TEXT, "TextTransformer"),
    "image_encoder": lambda module: _own_or_none(module, _VISUAL, "VisionTransformer"),
    "text_heads": lambda module: _attention(module, _TEXT).heads,
    "text_dim_head": lambda module: round(_attention(module, _TEXT).scale ** -2),
    "visual_heads": lambda module: _attention(module, _VISUAL).heads,
    "visual_dim_head": lambda module: round(_attention(module, _VISUAL).scale ** -2),
    "visual_patch_dropout": lambda module: module.visual_transformer.patch_dropout.prob,
    "channels": lambda module: module.image_channels,
    "simclr_temperature": lambda module: module.visual_ssl.temperature,
    "visual_ssl_hidden_layer": lambda module: _projected(module.visual_ssl).layer,
    **{
        name: lambda module, name=name: getattr(module, name)
        for name in (
            "text_has_cls_token", "visual_has_cls_token", "text_pad_id", "text_eos_id",
            "text_seq_len", "text_encode_without_mask", "use_all_token_embeds",
            "extra_latent_projection",
            "decoupled_contrastive_learning", "text_ssl_loss_weight", "image_ssl_loss_weight",
            "multiview_loss_weight", "sim_reg_loss_weight",
        )
    },
}  # fmt: skip

# None of these is readable in a network without masked language modelling.
_MLM = {
    name: lambda module, name=name: getattr(module.mlm, name)
    for name in (
        "mask_prob", "replace_prob", "random_token_prob", "mask_token_id", "pad_token_id",
    )
} | {
    "mask_ignore_token_ids": lambda module: tuple(
        sorted(module.mlm.mask_ignore_token_ids - {module.mlm.pad_token_id})
    ),
}  # fmt: skip


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays determine; numbers of heads and what changes no
    array have to be told, or are the package's defaults.
    """
    embedding, use_mlm = state[f"{_TEXT}.token_emb.weight"], "mlm.to_logits.weight" in state
    rotary = f"{_TEXT}.rotary_pos_emb.inv_freq" in state
    patches, dim_image = state[f"{_VISUAL}.pos_emb.weight"].shape
    downsample = "to_visual_latent.1.weight" in state
    patch, channels = _patch(state[f"{_VISUAL}.to_tokens.1.weight"].shape[1], told)
    latent = state["to_text_latent.weight"].shape[0]
    found = {
        "dim_text": embedding.shape[1],
        "dim_image": dim_image,
        "dim_latent": latent,
        "num_text_tokens": embedding.shape[0] - use_mlm,
        "text_enc_depth": _depth(state, _TEXT),
        "visual_enc_depth": _depth(state, _VISUAL),
        "text_rotary_pos_emb": rotary,
        "text_causal_mask": f"{_TEXT}.cls_token" not in state,
        "visual_patch_size": patch,
        "visual_image_size": patch * math.isqrt(patches),
        "channels": channels,
        "downsample_image_embeds": downsample,
        "use_mlm": use_mlm,
        # DALLE2-pytorch gives its CLIP such pixels
        "pixel_range": tuple(told.get("pixel_range", (0.0, 1.0))),
        **_heads(state, _TEXT, "text", told),
        **_heads(state, _VISUAL, "visual", told),
    }
    if not rotary:
        found["text_seq_len"] = state[f"{_TEXT}.abs_pos_emb.weight"].shape[0]
    if downsample:
        found["use_all_token_embeds"] = True
    kept = {name: told[name] for name in _TOLD if name in told and name not in found}
    return found | kept


def adapted(state: State, told: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """The class and the fields of a CLIP within a prior or a decoder of dalle2-pytorch, whose
    adapter embeds captions without their mask, takes id 0 for their padding whatever `text_pad_id`
    is, and embeds images that ResizeRight has resized, and class tokens even of a network that
    compares token by token.

    Args:
      told: what is told of the whole; in "clip" what `live` tells of its CLIP.

    Raises:
      UserError: a CLIP of another package than x-clip.
    """
    if not NETWORK.recognise(state):
        raise UserError(
            "the weights were saved with a CLIP that is not x-clip's; give them without those that "
            "begin with 'clip.', and CLIP as a part."
        )
    named = {name: value for name, value in told.items() if name in fields_of(CLIP)}
    found = fields(state, {**named, **told.get("clip", {}), **_ADAPTED})
    by_patches = found.get("use_all_token_embeds") and not found["downsample_image_embeds"]
    compat = ("resize_right", "cls_of_filip") if by_patches else ("resize_right",)
    return CLIP, found | {"compat": compat}


_ADAPTED = {"text_encode_without_mask": True, "text_pad_id": 0}


def _patch(width, told):
    """The side and channels of patches that have this many numbers."""
    for channels in (told["channels"],) if "channels" in told else (3, 1, 4):
        side = math.isqrt(width // channels)
        if side * side * channels == width:
            return side, channels
    raise ValueError(f"{width} numbers make no square patch")


def _heads(state, torch, ours, told):
    """The heads of a transformer, and their width: as told, or 64 wide."""
    inner = state[f"{torch}.transformer.layers.0.0.fn.to_qkv.weight"].shape[0] // 3
    heads, width = (told.get(f"{ours}_{name}") for name in ("heads", "dim_head"))
    width = width or (inner // heads if heads else 64)
    heads = heads or max(inner // width, 1)
    if heads * width != inner:
        raise UserError(
            f"{ours}_heads={heads} with {ours}_dim_head={width} does not make the {inner} channels "
            f"of the weights; give {ours}_heads."
        )
    return {f"{ours}_heads": heads, f"{ours}_dim_head": width}


def _depth(state, torch):
    start = f"{torch}.transformer.layers."
    return 1 + max(int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start))


def upgrade(state: State) -> State:
    """A state dict with its transformers under their own names, of one that has each array once, as
    `save_model` of safetensors writes it.
    """
    found = dict(state)
    for trunk, first in _FIRST.items():
        if f"{trunk}.{first}" in state:
            continue
        for again in _AGAIN[trunk]:
            if f"{again}.{first}" in state:
                inside = part(state, f"{again}.")
                found |= {f"{trunk}.{name}": value for name, value in inside.items()}
    return found


def recognise(state: State) -> bool:
    """Whether a state dict is that of a CLIP."""
    return {f"{trunk}.{first}" for trunk, first in _FIRST.items()} <= upgrade(state).keys()


@traced_once
def shapes(model: CLIP) -> Mapping[str, Any]:
    """The shapes of its parameters, unboxed."""
    return sharding.unbox(jax.eval_shape(model.init, jax.random.key(0)))


NETWORK = Network(
    model=CLIP,
    recognise=recognise,
    fields=fields,
    told=live,
    table=table,
    shapes=shapes,
    # the weights of self-supervised learning, see x_clip_ssl.py
    ignore=("visual_ssl.",),
    upgrade=upgrade,
)
