"""The transformers of muse-maskgit-pytorch 0.3.5: `MaskGitTransformer` and `TokenCritic`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import sharding
from t2i_jax.convert import arguments
from t2i_jax.convert.engine import (
    LINEAR,
    SAME,
    Constant,
    Entry,
    Network,
    Row,
    State,
    Unused,
    reshaped,
)
from t2i_jax.errors import UserError
from t2i_jax.models import maskgit
from t2i_jax.models.maskgit import MaskGitTransformer, TokenCritic
from t2i_jax.nn.maskgit_layers import inner_width


def table(model: Any) -> list[Row]:
    """The entries of one configuration of either network.

    Raises:
      UserError: positions of a conditioning image, or multi-axis attention or layers over the
        tokens of that image, which the package does not have.
    """
    if model.multi_axis is not None or model.cond_depth:
        raise UserError(
            f"multi_axis={model.multi_axis} and cond_depth={model.cond_depth} of the "
            f"{type(model).__name__} have no form in muse-maskgit-pytorch; t2i export writes the "
            "system as it is."
        )
    if model.cond_fmap_size is not None and "no_cond_positions" not in model.compat:
        raise UserError(
            f"compat={model.compat} of the {type(model).__name__} gives the tokens of the "
            "conditioning image positions, for which muse-maskgit-pytorch has no place; train "
            "with compat=('no_cond_positions',)."
        )
    entries: list[Row] = [
        Unused("norm.gamma", np.ones((model.dim,), np.float32)),
        Unused("norm.beta", np.zeros((model.dim,), np.float32)),
        Entry("token_emb.weight", "embedding"),
        Entry("pos_emb.weight", "pos"),
        *_norm("transformer_blocks.norm", "norm", model.dim),
        Entry("to_logits.weight", "to_logits/kernel", LINEAR),
    ]
    if model.text_embed_dim != model.dim:
        entries.append(Entry("text_embed_proj.weight", "text_proj/kernel", LINEAR))
    entries += _self_conditioning(model)
    for i in range(model.depth):
        entries += _layer(model, i)
    return entries


def _self_conditioning(model):
    """The package has these weights even where nothing goes through them."""
    used = _feed_forward("self_cond_to_init_embed", "self_cond_in", model.dim, 4)
    if model.self_cond:
        return used
    hidden = inner_width(model.dim, 4)
    shapes = {"0": (model.dim,), "1": (2 * hidden, model.dim), "3": (hidden,)}
    shapes["4"] = (model.dim, hidden)
    return [
        Unused(
            row.torch,
            np.full(shapes[row.torch.split(".")[1]], row.torch.endswith("gamma") * 1.0, np.float32),
        )
        for row in used
    ]


def _layer(model, i):
    torch, entries = f"transformer_blocks.layers.{i}", []
    null = (2, model.heads, 1, model.dim_head)
    for j, ours in enumerate(("layers/self_attention", "layers/cross_attention")):
        entries += [
            Entry(
                f"{torch}.{j}.null_kv", f"{ours}/null_kv", reshaped(null, (*null[:2], null[3])), i
            ),
            *_norm(f"{torch}.{j}.norm", f"{ours}/norm", model.dim, i),
            *(
                Entry(f"{torch}.{j}.{name}", f"{ours}/{name}", SAME, i)
                for name in ("q_scale", "k_scale")
            ),
            *(
                Entry(f"{torch}.{j}.{name}.weight", f"{ours}/{name}/kernel", LINEAR, i)
                for name in ("to_q", "to_kv", "to_out")
            ),
        ]
    mlp = _feed_forward(f"{torch}.2", "layers/feed_forward", model.dim, model.ff_mult, i)
    return [*entries, *mlp]


def _feed_forward(torch, ours, dim, mult, layer=None):
    hidden = inner_width(dim, mult)
    return [
        *_norm(f"{torch}.0", f"{ours}/norm", dim, layer),
        Entry(f"{torch}.1.weight", f"{ours}/wide/kernel", LINEAR, layer),
        *_norm(f"{torch}.3", f"{ours}/inner_norm", hidden, layer),
        Entry(f"{torch}.4.weight", f"{ours}/narrow/kernel", LINEAR, layer),
    ]


def _norm(torch, ours, dim, layer=None):
    zeros = np.zeros((dim,), np.float32)  # a shift that the package saves and never trains
    return [Entry(f"{torch}.gamma", f"{ours}/scale", layer=layer), Constant(f"{torch}.beta", zeros)]


def live(kind: str, rows: arguments.Rows, module: Any) -> dict[str, Any]:
    """The fields that a live network tells beside its weights, and in "settings" arguments of the
    package's class that are none of the network's.

    Args:
      kind, rows: the package's class and its arguments.

    Raises:
      UserError: an option that has no form here.
    """
    said = arguments.readable(_ARGUMENTS, module)
    arguments.check(kind, rows, said)
    # a T5 that was put in the place of the package's has no name
    settings = {name: said[name] for name in ("t5_name",) if name in said}
    return {"self_cond": bool(said["self_cond"]), "settings": settings}


_ARGUMENTS = {
    "self_cond": lambda module: module.self_cond,
    "t5_name": lambda module: module.encode_text.keywords["name"],
    "dim_out": lambda module: None if module.dim_out == module.num_tokens else module.dim_out,
    "add_mask_id": lambda module: module.mask_id is not None,
}


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays determine; self-conditioning has to be told, since
    the package saves its weights either way.
    """
    vocabulary, dim = state["token_emb.weight"].shape
    length = state["pos_emb.weight"].shape[0]
    side = math.isqrt(length)
    if side * side != length:
        raise ValueError(f"{length} positions make no square grid")
    heads, dim_head = state["transformer_blocks.layers.0.0.null_kv"].shape[1::2]
    wide = state["transformer_blocks.layers.0.2.1.weight"].shape[0] // 2
    text = state.get("text_embed_proj.weight")
    critic = state["to_logits.weight"].shape[0] == 1
    found = {
        "dim": dim,
        "depth": 1 + max(int(key.split(".")[2]) for key in state if ".layers." in key),
        "dim_head": dim_head,
        "heads": heads,
        "ff_mult": _mult(dim, wide),
        "fmap_size": side,
        "codebook_size": vocabulary if critic else vocabulary - 1,
        "text_embed_dim": dim if text is None else text.shape[1],
        "compat": ("no_cond_positions",),
    }
    return found | {name: told[name] for name in ("self_cond",) if name in told}


def _mult(dim, wide):
    """A multiplier that makes feed-forwards so wide; a whole one where there is one."""
    whole = round(wide * 3 / 2 / dim)
    for mult in (whole, wide * 3 / 2 / dim, (wide + 0.5) * 3 / 2 / dim):
        if inner_width(dim, mult) == wide:
            return mult
    raise ValueError(f"no ff_mult makes feed-forwards of {wide} channels")


def _is_transformer(state):
    return "transformer_blocks.layers.0.0.null_kv" in state and "token_emb.weight" in state


def _is_critic(state):
    return _is_transformer(state) and state["to_logits.weight"].shape[0] == 1


def _network(model, recognise, rows):
    return Network(
        model=model,
        recognise=recognise,
        fields=fields,
        told=functools.partial(live, model.__name__, rows),
        table=table,
        shapes=lambda network: sharding.unbox(maskgit.abstract(network)),
    )


CRITIC = _network(TokenCritic, _is_critic, arguments.TOKEN_CRITIC)
NETWORK = _network(
    MaskGitTransformer,
    lambda state: _is_transformer(state) and not _is_critic(state),
    arguments.MASKGIT_TRANSFORMER,
)
