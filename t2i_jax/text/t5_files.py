"""A T5 as Hugging Face stores it: a folder with config.json, weights and the tokenizer, or its name
on the hub.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from t2i_jax.config import did_you_mean
from t2i_jax.errors import UserError
from t2i_jax.text import pickled
from t2i_jax.text.t5_encoder import FEED_FORWARD, SIZES, T5Encoder

TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
TIED = {"shared.weight": "encoder.embed_tokens.weight"}  # saved under either name, or both
# In the order in which they are looked for.
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
    if os.path.isdir(source):
        return pathlib.Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return pathlib.Path(snapshot_download(source, allow_patterns=list(patterns)))
    # no network, no such name, no permission
    except (OSError, HFValidationError, ValueError) as error:
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
    given = json.loads(path.read_text())
    if given.get("model_type") != "t5":
        raise UserError(
            f"text={str(folder)!r} holds a model of type {given.get('model_type')!r}; give a T5 "
            "encoder."
        )
    feed_forward = given.get("feed_forward_proj", "relu")
    if feed_forward not in FEED_FORWARD:
        raise UserError(
            f"text={str(folder)!r} has feed_forward_proj={feed_forward!r}; known: "
            f"{', '.join(FEED_FORWARD)}."
        )
    return T5Encoder(
        dim=given["d_model"],
        depth=given["num_layers"],
        heads=given["num_heads"],
        dim_head=given["d_kv"],
        mlp_dim=given["d_ff"],
        vocab_size=given["vocab_size"],
        feed_forward=feed_forward,
        buckets=given.get("relative_attention_num_buckets", 32),
        max_distance=given.get("relative_attention_max_distance", 128),
        epsilon=given.get("layer_norm_epsilon", 1e-6),
    )


def names(network: T5Encoder) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
    """Every array of the encoder: its name at Hugging Face, its path in ours, and its index among
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
      UserError: no such file, or arrays that are missing or of another shape (all are listed).
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
        wanted = _at(shapes, path).shape[0 if layer is None else 1 :]
        if ours.shape != wanted:
            wanted = wanted[::-1] if path[-1] == "kernel" else wanted
            wrong.append(f"{torch} has shape {array.shape} instead of {wanted}")
            continue
        _put(params, path, layer, ours, network)
    if wrong:
        raise UserError(
            f"text={str(folder)!r} does not fit its config.json: {'; '.join(wrong)}; fetch it "
            "again."
        )
    return params


def has_weights(folder: pathlib.Path) -> bool:
    """Whether any file that `read_weights` reads lies there."""
    return any((folder / name).is_file() for name in _WEIGHTS)


def _readers(folder):
    """For every array stored in the folder its name and a function that reads it."""
    first = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise UserError(
            f"text={str(folder)!r} has neither model.safetensors nor pytorch_model.bin; fetch one "
            "of them."
        )
    shards = [first]
    if first.endswith(".index.json"):
        shards = sorted(set(json.loads((folder / first).read_text())["weight_map"].values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise UserError(
            f"text={str(folder)!r} lacks {', '.join(absent)}; fetch it, or give another folder."
        )
    read = pickled.readers if shards[0].endswith(".bin") else _safetensors
    return {name: reader for shard in shards for name, reader in read(folder / shard).items()}


def _safetensors(path):
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="np")
    except SafetensorError as error:
        raise UserError(
            f"weights={str(path)!r} is not a safetensors file ({error}); fetch it again."
        ) from error
    names = file.keys()
    return {name: lambda name=name: file.get_tensor(name) for name in names}


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
    if layer is None:
        node[path[-1]] = array.astype(dtype)
        return
    if path[-1] not in node:
        node[path[-1]] = np.empty((network.depth, *array.shape), dtype)
    node[path[-1]][layer] = array
