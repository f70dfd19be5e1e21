"""The transformer of google-research/maskgit, which keeps it as Flax does.

Its table of embeddings holds codes, classes and the mask, one below the other. Ours are two leaves
of the network and those of the text encoder `ClassLabels`, so that the parameters are those of a
`MaskGitTask`: {"decoder": of the network, "text": {"embedding"}}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import sharding
from t2i_jax.convert.engine import Entry, Network, Row, State, reshaped
from t2i_jax.models import maskgit_bert
from t2i_jax.models.maskgit_bert import MaskGitBert

_PUBLIC_CODES = 1024
_WORDS, _BIAS = "Embed_0.word_embeddings.embedding", "MlmLayer_0.mlm_bias.bias"


def table(model: MaskGitBert) -> list[Row]:
    """The entries of one configuration."""
    codes: Any = model.codebook_size
    entries = [Entry(_WORDS, "decoder/embedding", first=0)]
    if model.num_classes:
        entries.append(Entry(_WORDS, "text/embedding", first=codes))
    entries += [
        Entry(_WORDS, "decoder/mask_embedding", first=codes + model.num_classes),
        Entry("Embed_0.position_embeddings.embedding", "decoder/pos"),
        *_pair("Embed_0.embeddings_ln", "decoder/norm_in", "scale"),
    ]
    for layer in range(model.depth):
        entries += _layer(model, layer)
    return [
        *entries,
        *_pair("MlmLayer_0.mlm_dense", "decoder/to_out", "kernel"),
        *_pair("MlmLayer_0.mlm_ln", "decoder/norm_out", "scale"),
        Entry(_BIAS, "decoder/bias"),
    ]


def _layer(model, i):
    theirs, ours = f"TransformerLayer_{i}", "decoder/layers"
    attention, heads = f"{theirs}.Attention_0", (model.heads, model.dim // model.heads)
    split = reshaped((model.dim, *heads), (model.dim, model.dim))
    joined = reshaped((*heads, model.dim), (model.dim, model.dim))
    bias, entries = reshaped(heads, (model.dim,)), []
    for name in ("query", "key", "value"):
        at = f"{attention}.self_attention.{name}"
        entries.append(Entry(f"{at}.kernel", f"{ours}/{name[0]}/kernel", split, i))
        entries.append(Entry(f"{at}.bias", f"{ours}/{name[0]}/bias", bias, i))
    out = f"{attention}.self_attention.out"
    return [
        *entries,
        Entry(f"{out}.kernel", f"{ours}/out/kernel", joined, i),
        Entry(f"{out}.bias", f"{ours}/out/bias", layer=i),
        *_pair(f"{attention}.attention_output_ln", f"{ours}/attention_norm", "scale", i),
        *_pair(f"{theirs}.Mlp_0.intermediate_output", f"{ours}/wide", "kernel", i),
        *_pair(f"{theirs}.Mlp_0.layer_output", f"{ours}/narrow", "kernel", i),
        *_pair(f"{theirs}.Mlp_0.layer_output_ln", f"{ours}/mlp_norm", "scale", i),
    ]


def _pair(theirs, ours, first, layer=None):
    return [Entry(f"{theirs}.{name}", f"{ours}/{name}", layer=layer) for name in (first, "bias")]


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays and `told` determine.

    Args:
      told: fields that the user tells. The arrays do not tell how many of the embeddings are of
        codes: without `codebook_size` it is that of the public files, 1024.
    """
    vocabulary, dim = state[_WORDS].shape
    codes = told.get("codebook_size", _PUBLIC_CODES)
    if not 0 < codes < vocabulary:
        raise ValueError(
            f"{vocabulary} embeddings are not {codes} codes, classes and a mask; give codebook_size"
        )
    length = state["Embed_0.position_embeddings.embedding"].shape[0] - 1
    if math.isqrt(length) ** 2 != length:
        raise ValueError(f"{length} positions make no square grid")
    layers = [int(name.split(".")[0].split("_")[1]) for name in state if name[:4] == "Tran"]
    first = "TransformerLayer_0"
    return {
        "dim": dim,
        "depth": 1 + max(layers),
        "heads": state[f"{first}.Attention_0.self_attention.query.kernel"].shape[1],
        "mlp_dim": state[f"{first}.Mlp_0.intermediate_output.kernel"].shape[1],
        "fmap_size": math.isqrt(length),
        "codebook_size": codes,
        "text_embed_dim": dim,
        "num_classes": vocabulary - codes - 1,
    }


def _shapes(model):
    shapes = {"decoder": sharding.unbox(maskgit_bert.abstract(model))}
    if model.num_classes:
        classes = jax.ShapeDtypeStruct((model.num_classes, model.dim), np.float32)
        shapes["text"] = {"embedding": classes}
    return shapes


NETWORK = Network(
    model=MaskGitBert,
    recognise=lambda state: _WORDS in state and _BIAS in state,
    fields=fields,
    table=table,
    shapes=_shapes,
    told=lambda module: {},
)
