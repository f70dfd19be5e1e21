"""DINOv2 under the names of transformers' files and under Meta's."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange

from t2i_jax import sharding
from t2i_jax.convert import arguments, patches
from t2i_jax.convert.engine import (
    LINEAR,
    SAME,
    Entry,
    Layout,
    Network,
    Row,
    State,
    Unused,
    reshaped,
)
from t2i_jax.foreign import json_file
from t2i_jax.models.dinov2 import Dinov2
from t2i_jax.tracing import traced_once

_FILES = ("model.safetensors", "pytorch_model.bin")  # of which config.json tells
_REMEDY = "fetch it again"

# Modules of transformers in memory, since its version 5, and as its files name them.
_IN_MEMORY = {
    r"\.attention\.([qkv])_proj\.": {
        "q": ".attention.attention.query.", "k": ".attention.attention.key.",
        "v": ".attention.attention.value.",
    },
    r"\.attention\.(o)_proj\.": {"o": ".attention.output.dense."},
    r"\.mlp\.(down)_proj\.": {"down": ".mlp.weights_out."},
}  # fmt: skip
# Two arrays of a module in memory that are one of its files, the second below the first.
_HALVES, _WHOLE = (".mlp.gate_proj.", ".mlp.up_proj."), ".mlp.weights_in."


def _patches(model):
    side = model.patch_size
    return Layout(
        "patches (O, I, H, W) <-> (H W I, O)",
        lambda a: rearrange(a, "o i h w -> (h w i) o"),
        lambda a: rearrange(a, "(h w i) o -> o i h w", h=side, w=side),
    )


def _embeddings(model, before, names):
    """The rows of what comes before the layers."""
    width = model.width
    cls, mask, positions, patches = (before + name for name in names)
    rows = reshaped((1, 1 + model.grid**2, width), (1 + model.grid**2, width))
    return [
        Entry(cls, "cls", reshaped((1, 1, width), (width,))),
        Entry(positions, "positions", rows),
        Entry(f"{patches}.weight", "to_tokens/kernel", _patches(model)),
        Entry(f"{patches}.bias", "to_tokens/bias"),
        Unused(mask, np.zeros((1, width), np.float32)),  # of training
    ]


def transformers_table(model: Dinov2) -> list[Row]:
    """The entries under the names of a file of transformers' Dinov2Model."""
    rows: list[Row] = _embeddings(
        model,
        "embeddings.",
        ("cls_token", "mask_token", "position_embeddings", "patch_embeddings.projection"),
    )
    rows += _both("layernorm", "norm", None)
    wide, narrow = ("mlp.weights_in", "mlp.weights_out") if model.gated else ("mlp.fc1", "mlp.fc2")
    for i in range(model.depth):
        layer = f"encoder.layer.{i}"
        rows += _layer(
            layer, i, ("layer_scale1.lambda1", "layer_scale2.lambda1"), "attention.output.dense",
            wide, narrow,
        )  # fmt: skip
        for j, name in enumerate(("query", "key", "value")):
            key = f"{layer}.attention.attention.{name}"
            rows += [
                Entry(f"{key}.weight", "layers/qkv/kernel", LINEAR, i, (j, 3)),
                Entry(f"{key}.bias", "layers/qkv/bias", SAME, i, (j, 3)),
            ]
    return rows


def meta_table(model: Dinov2) -> list[Row]:
    """The entries under the names of Meta's files."""
    rows: list[Row] = _embeddings(
        model, "", ("cls_token", "mask_token", "pos_embed", "patch_embed.proj")
    )
    rows += _both("norm", "norm", None)
    wide, narrow = ("mlp.w12", "mlp.w3") if model.gated else ("mlp.fc1", "mlp.fc2")
    for i in range(model.depth):
        layer = f"blocks.{i}"
        rows += _layer(layer, i, ("ls1.gamma", "ls2.gamma"), "attn.proj", wide, narrow)
        rows += _both(f"{layer}.attn.qkv", "layers/qkv", i, LINEAR)
    return rows


def _layer(layer, i, scales, out, wide, narrow):
    """The rows of a layer that the tables of both naming schemes share."""
    return [
        *_both(f"{layer}.norm1", "layers/norm_attention", i),
        *_both(f"{layer}.norm2", "layers/norm_mlp", i),
        Entry(f"{layer}.{scales[0]}", "layers/scale_attention", SAME, i),
        Entry(f"{layer}.{scales[1]}", "layers/scale_mlp", SAME, i),
        *_both(f"{layer}.{out}", "layers/out", i, LINEAR),
        *_both(f"{layer}.{wide}", "layers/wide", i, LINEAR),
        *_both(f"{layer}.{narrow}", "layers/narrow", i, LINEAR),
    ]


def _both(torch, ours, layer, layout=SAME):
    """Weight and bias of a norm, or of a linear layer."""
    weight = "scale" if layout is SAME else "kernel"
    return [
        Entry(f"{torch}.weight", f"{ours}/{weight}", layout, layer),
        Entry(f"{torch}.bias", f"{ours}/bias", SAME, layer),
    ]


def _fields(state, told, names):
    """The fields that the shapes show, with those that are told."""
    patches, positions, layer, wide, narrow = names
    width, _, side, _ = state[patches].shape
    gated = f"{layer}0.{wide[1]}.weight" in state
    start = len(layer)
    found = {
        "width": width,
        "depth": 1 + max(int(k[start:].split(".")[0]) for k in state if k.startswith(layer)),
        "mlp_dim": state[f"{layer}0.{narrow[gated]}.weight"].shape[1],
        "patch_size": side,
        "grid": math.isqrt(state[positions].shape[1] - 1),
        "gated": gated,
    }
    return found | {name: told[name] for name in ("heads", "epsilon") if name in told}


def _transformers_fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    return _fields(
        state, told,
        ("embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
         "encoder.layer.", ("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.weights_out")),
    )  # fmt: skip


def _meta_fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    return _fields(
        state, told,
        ("patch_embed.proj.weight", "pos_embed", "blocks.", ("mlp.fc1", "mlp.w12"),
         ("mlp.fc2", "mlp.w3")),
    )  # fmt: skip


def _live(module: Any) -> dict[str, Any]:
    """The fields that a live Dinov2Model tells beside its weights."""
    return _of_config(module.config.to_dict(), "Dinov2Model")


def _meta_live(module: Any) -> dict[str, Any]:
    """The fields that a live network of Meta's code tells beside its weights."""
    block = module.blocks[0]
    return {"heads": block.attn.num_heads, "epsilon": block.norm1.eps}


def _beside(file: pathlib.Path) -> dict[str, Any]:
    """The fields that config.json tells beside a file under the name of published weights; {} where
    there is none, or that of another model.
    """
    path = file.parent / "config.json"
    if file.name not in _FILES or not path.is_file():
        return {}
    where = f"dinov2={str(path)!r}"
    config = json_file.an_object(json_file.read(path, "dinov2", _REMEDY), where, _REMEDY)
    return _of_config(config, where) if config.get("model_type") == "dinov2" else {}


def _of_config(config, where):
    """The fields of a Dinov2Config; what it leaves out has transformers' default."""
    rows = arguments.DINOV2_CONFIG
    arguments.check(where, rows, {name: config[name] for name in rows if name in config})
    patches.check(where, config.get("image_size"), config.get("patch_size"))
    return {
        "heads": config.get("num_attention_heads", 12),
        "epsilon": config.get("layer_norm_eps", 1e-6),
    }


def _as_in_files(state: State) -> State:
    """The arrays under the names of files, where they have those of a module in memory."""

    def named(name):
        for pattern, names in _IN_MEMORY.items():
            name = re.sub(pattern, lambda match, names=names: names[match[1]], name)
        return name

    found = {named(name): value for name, value in state.items()}
    first, second = _HALVES
    for name in [name for name in found if first in name]:
        halves = [found.pop(name), found.pop(name.replace(first, second))]
        found[name.replace(first, _WHOLE)] = np.concatenate(halves)
    return found


@traced_once
def _shapes(model: Dinov2) -> Mapping[str, Any]:
    side = model.grid * model.patch_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return sharding.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])


TRANSFORMERS = Network(
    model=Dinov2,
    recognise=lambda state: (
        "embeddings.patch_embeddings.projection.weight" in state
        and "encoder.layer.0.layer_scale1.lambda1" in state
    ),
    fields=_transformers_fields,
    told=_live,
    configured=_beside,
    table=transformers_table,
    shapes=_shapes,
    upgrade=_as_in_files,
)
META = Network(
    model=Dinov2,
    recognise=lambda state: "pos_embed" in state and "blocks.0.ls1.gamma" in state,
    fields=_meta_fields,
    told=_meta_live,
    table=meta_table,
    shapes=_shapes,
)
