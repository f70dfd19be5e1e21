"""DINOv2 under the names of transformers' files and under Meta's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange

from t2i_jax import sharding
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
from t2i_jax.models.dinov2 import Dinov2
from t2i_jax.tracing import traced_once

# Modules of transformers in memory, since its version 5, and as its files name them.
_IN_MEMORY = {
    r"\.attention\.([qkv])_proj\.": {
        "q": ".attention.attention.query.", "k": ".attention.attention.key.",
        "v": ".attention.attention.value.",
    },
    r"\.attention\.(o)_proj\.": {"o": ".attention.output.dense."},
}  # fmt: skip


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


def _fields(state, module, names):
    """The fields that the shapes show, with the heads of a live module."""
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
    told = getattr(module, "config", None)
    heads = getattr(told, "num_attention_heads", None)
    return found | ({} if heads is None else {"heads": heads})


def _transformers_fields(state: State, module: Any) -> dict[str, Any]:
    return _fields(
        state, module,
        ("embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings",
         "encoder.layer.", ("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.weights_out")),
    )  # fmt: skip


def _meta_fields(state: State, module: Any) -> dict[str, Any]:
    return _fields(
        state, module,
        ("patch_embed.proj.weight", "pos_embed", "blocks.", ("mlp.fc1", "mlp.w12"),
         ("mlp.fc2", "mlp.w3")),
    )  # fmt: skip


def _as_in_files(state: State) -> State:
    """The arrays under the names of files, where they have those of a module in memory."""

    def named(name):
        for pattern, names in _IN_MEMORY.items():
            name = re.sub(pattern, lambda match, names=names: names[match[1]], name)
        return name

    return {named(name): value for name, value in state.items()}


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
    table=transformers_table,
    shapes=_shapes,
    upgrade=_as_in_files,
)
META = Network(
    model=Dinov2,
    recognise=lambda state: "pos_embed" in state and "blocks.0.ls1.gamma" in state,
    fields=_meta_fields,
    table=meta_table,
    shapes=_shapes,
)
