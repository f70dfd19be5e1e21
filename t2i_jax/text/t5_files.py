"""A T5 as Hugging Face stores it: a folder with config.json, weights and the tokenizer, or its name
on the hub.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from t2i_jax import paths
from t2i_jax.config import did_you_mean
from t2i_jax.errors import UserError
from t2i_jax.foreign import json_file, safetensors_file, torch_archive
from t2i_jax.foreign.arrays import not_finite, some
from t2i_jax.text.t5_encoder import FEED_FORWARD, SIZES, T5Encoder
from t2i_jax.values import shown

TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
TIED = {"shared.weight": "encoder.embed_tokens.weight"}  # saved under either name, or both
# Names in config.json, the field of `T5Encoder` for each, and its value where it is left out (None:
# it may not be left out).
_CONFIG = (
    ("d_model", "dim", None),
    ("num_layers", "depth", None),
    ("num_heads", "heads", None),
    ("d_kv", "dim_head", None),
    ("d_ff", "mlp_dim", None),
    ("vocab_size", "vocab_size", None),
    ("relative_attention_num_buckets", "buckets", 32),
    ("relative_attention_max_distance", "max_distance", 128),
    ("layer_norm_epsilon", "epsilon", 1e-6),
)
_LARGEST = 2**24
# Names of the files of weights, in the order in which they are looked for.
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def folder_of(source: str, *patterns: str) -> pathlib.Path:
    """The local folder of `source`: itself, or where the hub's copy lies, fetched when it is not
    there.

    Args:
      source: a folder, or a name on the hub such as "google/t5-v1_1-base".
      *patterns: the files wanted from the hub, for example "*.safetensors".

    Raises:
      UserError: no such folder, and no such name within reach.
    """
    place = paths.local("text", source)
    if os.path.isdir(place):
        return pathlib.Path(place)
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(source, allow_patterns=list(patterns)))
    # no network, no such name, no permission: errors of whatever library the hub's client uses
    except Exception as error:
        known = "" if source in SIZES else " " + did_you_mean(source, SIZES)
        raise UserError(
            f"text={source!r} is neither a folder nor within reach on the Hugging Face hub "
            f"({type(error).__name__}); download it where there is a network and give the "
            f"folder.{known}"
        ) from error


def read_config(folder: pathlib.Path) -> T5Encoder:
    """The network that config.json describes.

    Raises:
      UserError: no config.json, not of a T5, or a feed-forward layer that T5 does not have.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"text={str(folder)!r} has no config.json; give a folder that save_pretrained() wrote."
        )
    where, remedy = f"text={str(path)!r}", "fetch it again"
    given = json_file.an_object(json_file.read(path, "text", remedy), where, remedy)
    if given.get("model_type") != "t5":
        raise UserError(
            f"text={str(folder)!r} holds a model of type {shown(given.get('model_type'))}; give a "
            "T5 encoder."
        )
    feed_forward = given.get("feed_forward_proj", "relu")
    if feed_forward not in list(FEED_FORWARD):
        raise UserError(
            f"text={str(folder)!r} has feed_forward_proj={shown(feed_forward)}; known: "
            f"{', '.join(FEED_FORWARD)}."
        )
    fields: dict[str, Any] = {"feed_forward": feed_forward}
    for name, field, default in _CONFIG:
        value = given.get(name, default)
        if value is None:
            raise UserError(f"{where} has no {name}; {remedy}.")
        kind = type(default) if default is not None else int
        fields[field] = json_file.a(kind, value, f"{where}: {name}", remedy)
        if not 0 < value <= _LARGEST:
            raise UserError(f"{where} has {name}={shown(value)}, which no T5 has; {remedy}.")
    try:
        return T5Encoder(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def names(network: T5Encoder) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
    """All arrays of the encoder: the name at Hugging Face, the path in ours, and the index among
    the stacked layers.

    Matrices named "kernel" are transposed between the two; all else is the same.
    """
    yield "shared.weight", ("embedding",), None
    yield f"{_block(0)}.0.SelfAttention.relative_attention_bias.weight", ("relative_bias",), None
    gated = network.feed_forward.startswith("gated")
    matrices = {
        "SelfAttention.q": "q",
        "SelfAttention.k": "k",
        "SelfAttention.v": "v",
        "SelfAttention.o": "out",
    }
    wide = (
        {"DenseReluDense.wi_0": "wide", "DenseReluDense.wi_1": "gate"}
        if gated
        else {"DenseReluDense.wi": "wide"}
    )
    for i in range(network.depth):
        for torch, ours in matrices.items():
            yield f"{_block(i)}.0.{torch}.weight", ("layers", ours, "kernel"), i
        yield f"{_block(i)}.0.layer_norm.weight", ("layers", "norm_attention", "scale"), i
        for torch, ours in (wide | {"DenseReluDense.wo": "narrow"}).items():
            yield f"{_block(i)}.1.{torch}.weight", ("layers", ours, "kernel"), i
        yield f"{_block(i)}.1.layer_norm.weight", ("layers", "norm_mlp", "scale"), i
    yield "encoder.final_layer_norm.weight", ("norm", "scale"), None


def read_weights(
    folder: pathlib.Path, network: T5Encoder, shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """The encoder's parameters from safetensors, else from pytorch_model.bin, one file or several.

    No decoder is read.

    Args:
      shapes: the parameters' nested dict of shapes. Matrices and the embedding come in
        `network.dtype`, in which they are used; norms and the relative bias in float32.

    Raises:
      UserError: no such file, or arrays that are missing, of another shape, or with values that
        are not finite (all are listed).
    """
    params: dict[str, Any] = {}
    wrong: list[str] = []
    stored = _readers(folder)
    for torch, path, layer in names(network):
        name = next((name for name in (torch, TIED.get(torch)) if name in stored), None)
        if name is None:
            wrong.append(f"{torch} is missing")
            continue
        array = stored[name]()
        ours = array.T if path[-1] == "kernel" else array
        if array.dtype.kind not in "fV" and array.ndim:
            wrong.append(f"{torch} is of the type {array.dtype}")
            continue
        wanted = _at(shapes, path).shape[0 if layer is None else 1 :]
        if ours.shape != wanted:
            wanted = wanted[::-1] if path[-1] == "kernel" else wanted
            wrong.append(f"{torch} has shape {array.shape} instead of {wanted}")
            continue
        placed = _put(params, path, layer, ours, network)
        if unfit := not_finite(placed):
            wrong.append(f"{torch} has {unfit}")
    if wrong:
        raise UserError(
            f"text={str(folder)!r} does not fit its config.json: {some(wrong)}; fetch it again."
        )
    return params


def has_weights(folder: pathlib.Path) -> bool:
    """Whether any file that `read_weights` reads lies there."""
    return any((folder / name).is_file() for name in _WEIGHTS)


def _readers(folder):
    """Functions that read the arrays stored in the folder, by the arrays' names."""
    first = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise UserError(
            f"text={str(folder)!r} has neither model.safetensors nor pytorch_model.bin; fetch one "
            "of them."
        )
    shards = [first]
    if first.endswith(".index.json"):
        shards = _shards(folder / first)
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise UserError(
            f"text={str(folder)!r} lacks {', '.join(absent)}; fetch it, or give another folder."
        )
    read = torch_archive.readers if shards[0].endswith(".bin") else safetensors_file.readers
    return {
        name: reader for shard in shards for name, reader in read(folder / shard, "weights").items()
    }


def _shards(index):
    """The files that an index of weights names, which lie beside it."""
    where, remedy = f"weights={str(index)!r}", "fetch it again"
    found = json_file.an_object(json_file.read(index, "weights", remedy), where, remedy)
    files = json_file.an_object(found.get("weight_map"), f"{where}: weight_map", remedy)
    for name, shard in files.items():
        json_file.a(str, shard, f"{where}: weight_map.{name}", remedy)
        if not shard or pathlib.PurePath(shard).name != shard:
            raise UserError(f"{where} names {shown(shard)}, which is not beside it; {remedy}.")
    if not files:
        raise UserError(f"{where} names no file; {remedy}.")
    return sorted(set(files.values()))


def _block(i):
    return f"encoder.block.{i}.layer"


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _put(params, path, layer, array, network):
    node = params
    for key in path[:-1]:
        node = node.setdefault(key, {})
    used_in_dtype = path[-1] in ("kernel", "embedding")
    dtype = jnp.dtype(network.dtype) if used_in_dtype else np.dtype("float32")
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(dtype)
    if layer is None:
        node[path[-1]] = array
        return array
    if path[-1] not in node:
        node[path[-1]] = np.empty((network.depth, *array.shape), dtype)
    node[path[-1]][layer] = array
    return array
