"""The encoder of T5 as transformers has it (T5EncoderModel, or the encoder inside a whole T5)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.convert.engine import LINEAR, SAME, Entry, Network, State
from t2i_jax.text import t5_files
from t2i_jax.text.t5_encoder import T5Encoder
from t2i_jax.tracing import traced_once

_LAYER = "encoder.block.0.layer"


def table(model: T5Encoder) -> list[Entry]:
    """The entries of one configuration; the embedding has two names."""
    entries = []
    for torch, path, layer in t5_files.names(model):
        entries.append(Entry(torch, path, LINEAR if path[-1] == "kernel" else SAME, layer))
        if torch in t5_files.TIED:
            entries.append(Entry(t5_files.TIED[torch], path))
    return entries


def fields(state: State, module: Any) -> dict[str, Any]:
    """The fields that shapes determine; the gated activation, max_distance and epsilon come from a
    live module's configuration.
    """
    queries = state[f"{_LAYER}.0.SelfAttention.q.weight"]
    buckets, heads = state[f"{_LAYER}.0.SelfAttention.relative_attention_bias.weight"].shape
    gated = f"{_LAYER}.1.DenseReluDense.wi_0.weight" in state
    found = {
        "dim": queries.shape[1],
        "depth": 1
        + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.block.")),
        "heads": heads,
        "dim_head": queries.shape[0] // heads,
        "mlp_dim": state[f"{_LAYER}.1.DenseReluDense.wo.weight"].shape[1],
        "vocab_size": next(
            state[name].shape[0] for tie in t5_files.TIED.items() for name in tie if name in state
        ),
        "buckets": buckets,
    } | ({} if gated else {"feed_forward": "relu"})
    if module is None:
        return found
    return found | {
        "feed_forward": module.config.feed_forward_proj,
        "max_distance": module.config.relative_attention_max_distance,
        "epsilon": module.config.layer_norm_epsilon,
    }


@traced_once
def _shapes(model):
    text_BL = jnp.zeros((1, 2), jnp.int32)
    return sharding.unbox(
        jax.eval_shape(model.init, jax.random.key(0), text_BL, text_BL == 0)["params"]
    )


NETWORK = Network(
    model=T5Encoder,
    recognise=lambda state: f"{_LAYER}.0.SelfAttention.relative_attention_bias.weight" in state,
    fields=fields,
    table=table,
    shapes=_shapes,
    ignore=("decoder.", "lm_head."),
)
