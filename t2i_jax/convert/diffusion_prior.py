"""The network of dalle2-pytorch 1.15.6's diffusion prior, `DiffusionPriorNetwork`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import sharding
from t2i_jax.convert import arguments
from t2i_jax.convert.engine import LINEAR, Entry, Network, Row, State, Unused, reshaped
from t2i_jax.convert.ratio import ratio
from t2i_jax.errors import UserError
from t2i_jax.models import diffusion_prior
from t2i_jax.models.diffusion_prior import DiffusionPriorNetwork
from t2i_jax.tracing import traced_once

_SINCE_1_9 = ("null_text_encodings", "null_text_embeds", "null_image_embed")
_LAYER = "causal_transformer.layers"


def table(model: DiffusionPriorNetwork) -> list[Row]:
    """The entries of one configuration.

    Raises:
      UserError: embeddings or encodings of another width than the network, for which the package
        has no place.
    """
    for name in ("embed_dim", "text_dim"):
        if getattr(model, name) not in (None, model.dim):
            raise UserError(
                f"{name}={getattr(model, name)} of the prior's network is not dim={model.dim}, and "
                "dalle2-pytorch has no projection between them; train with dim as wide as the CLIP."
            )
    dim, count = model.dim, model.num_text_embeds
    rows: list[Row] = [
        Entry("learned_query", "learned_query"),
        Entry(
            "null_text_encodings", "null_text_encodings",
            reshaped((1, model.max_text_len, dim), (model.max_text_len, dim)),
        ),
        Entry(
            "null_text_embeds", "null_text_embeds", reshaped((1, count, dim), (count, dim))
        ),
        Entry("null_image_embed", "null_image_embed", reshaped((1, dim), (dim,))),
        Entry("causal_transformer.rel_pos_bias.relative_attention_bias.weight", "relative_bias"),
        *_linear("to_text_embeds.0", "text_embeds", count > 1),
        *_linear("to_image_embeds.0", "image_embeds", model.num_image_embeds > 1),
        *_time(model),
    ]  # fmt: skip
    if model.norm_in:
        rows.append(Entry("causal_transformer.init_norm.g", "norm_in/scale"))
    if model.norm_out:
        rows.append(Entry("causal_transformer.norm.g", "norm/scale"))
    if model.final_proj:
        rows.append(Entry("causal_transformer.project_out.weight", "project_out/kernel", LINEAR))
    return rows + [row for i in range(model.depth) for row in _layer(model, i)]


def _time(model):
    if model.num_timesteps is not None:
        return [Entry("to_time_embeds.0.weight", "time_embedding")]
    names = {"0.0": "time_hidden", "1.0": "time_hidden_2", "2": "time_out"}
    return [
        row
        for torch, ours in names.items()
        for row in _linear(f"to_time_embeds.0.1.net.{torch}", ours)
    ]


def _linear(torch, ours, there=True):
    if not there:
        return []
    return [
        Entry(f"{torch}.weight", f"{ours}/kernel", LINEAR),
        Entry(f"{torch}.bias", f"{ours}/bias"),
    ]


def _layer(model, i):
    attention, mlp = f"{_LAYER}.{i}.0", f"{_LAYER}.{i}.1"
    rows: list[Row] = [
        Entry(f"{attention}.null_kv", "layers/attention/null_kv", layer=i),
        Entry(f"{attention}.norm.g", "layers/attention/norm/scale", layer=i),
        Entry(f"{attention}.to_q.weight", "layers/attention/to_q/kernel", LINEAR, i),
        Entry(f"{attention}.to_kv.weight", "layers/attention/to_kv/kernel", LINEAR, i),
        Entry(f"{attention}.to_out.0.weight", "layers/attention/to_out/kernel", LINEAR, i),
        Entry(f"{attention}.to_out.1.g", "layers/attention/out_norm/scale", layer=i),
        Entry(f"{mlp}.0.g", "layers/mlp/norm/scale", layer=i),
        Entry(f"{mlp}.1.weight", "layers/mlp/wide/kernel", LINEAR, i),
        Entry(f"{mlp}.5.weight", "layers/mlp/narrow/kernel", LINEAR, i),
    ]
    if model.normformer:
        rows.append(Entry(f"{mlp}.3.g", "layers/mlp/inner_norm/scale", layer=i))
    if model.rotary_emb:  # saved once per layer, and never trained
        rates = diffusion_prior.rates(model.dim_head)
        rows.append(Unused(f"{attention}.rotary_emb.freqs", rates))
    return rows


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration from shapes; whether the network is self-conditioned must be told, and is
    taken from `told` where it stands there.

    Raises:
      UserError: weights of an earlier release whose network is another one.
    """
    if any(name not in state for name in _SINCE_1_9):
        raise UserError(
            "the weights are of a release of dalle2-pytorch before 1.9.0, whose prior is another "
            "one; convert with that release, or train anew."
        )
    (dim,) = state["learned_query"].shape
    wide = state[f"{_LAYER}.0.1.1.weight"].shape[0]
    time = state.get("to_time_embeds.0.weight")
    time_rows = state["to_time_embeds.0.1.net.2.weight"].shape[0] if time is None else time.shape[1]
    image = state.get("to_image_embeds.0.weight")
    found = {
        "dim": dim,
        "depth": 1 + max(int(key.split(".")[2]) for key in state if key.startswith(_LAYER)),
        "dim_head": state[f"{_LAYER}.0.0.null_kv"].shape[1],
        "heads": state["causal_transformer.rel_pos_bias.relative_attention_bias.weight"].shape[1],
        "ff_mult": ratio([(dim, wide // 2)]),
        "num_timesteps": None if time is None else time.shape[0],
        "num_time_embeds": time_rows // dim,
        "num_image_embeds": 1 if image is None else image.shape[0] // dim,
        "num_text_embeds": state["null_text_embeds"].shape[1],
        "max_text_len": state["null_text_encodings"].shape[1],
        "norm_in": "causal_transformer.init_norm.g" in state,
        "norm_out": "causal_transformer.norm.g" in state,
        "final_proj": "causal_transformer.project_out.weight" in state,
        "normformer": f"{_LAYER}.0.1.3.g" in state,
        "rotary_emb": f"{_LAYER}.0.0.rotary_emb.freqs" in state,
    }
    return found | {name: told[name] for name in _TOLD if name in told}


_TOLD = ("self_cond", "attn_dropout", "ff_dropout")


def live(module: Any) -> dict[str, Any]:
    """The fields of a live network that its weights do not show.

    Raises:
      UserError: an option that has no form here.
    """
    attention, mlp = module.causal_transformer.layers[0]
    read = {
        "self_cond": lambda _: module.self_cond,
        "attn_dropout": lambda _: attention.dropout.p,
        "ff_dropout": lambda _: mlp[4].p,
    }
    said = arguments.readable(read, module)
    arguments.check("DiffusionPriorNetwork", arguments.DIFFUSION_PRIOR_NETWORK, said)
    return said


def recognise(state: State) -> bool:
    """Whether a state dict is that of the network, of whatever release."""
    return "learned_query" in state and any(key.startswith(_LAYER) for key in state)


@traced_once
def shapes(model: DiffusionPriorNetwork) -> Any:
    """The shapes of the parameters; nothing is computed."""
    return sharding.unbox(
        jax.eval_shape(functools.partial(diffusion_prior.init, model), jax.random.key(0))
    )


NETWORK = Network(
    model=DiffusionPriorNetwork,
    recognise=recognise,
    fields=fields,
    told=live,
    table=table,
    shapes=shapes,
)
