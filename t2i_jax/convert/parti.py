"""The Parti of parti-pytorch (0.2.0, and 0.1 with its norm after attention), alone or with its
tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import config, sharding
from t2i_jax.convert import arguments, engine, vit_vqgan
from t2i_jax.convert.engine import LINEAR, SAME, Constant, Entry, Network, State
from t2i_jax.convert.ratio import ratio
from t2i_jax.errors import UserError
from t2i_jax.models.parti import Parti, PartiAndTokenizer
from t2i_jax.tracing import traced_once

_VAE = "vae."


def table(model: Parti) -> list[Entry | Constant]:
    """The entries of one configuration."""
    entries = [
        Entry("start_token", "start_token"),
        Entry("axial_height_pos", "height_pos"),
        Entry("axial_width_pos", "width_pos"),
        Entry("image_token_embed.weight", "embedding"),
        Entry("to_logits.weight", "embedding"),
        *_norm("init_norm", "init_norm", model.dim),
        *_norm("final_norm", "final_norm", model.dim),
    ]
    for i in range(model.depth):
        entries += _layer(model, i)
    return entries


def _layer(model, i):
    own, cross, mlp = (f"layers.{i}.{j}" for j in range(3))
    hidden = int(model.dim * model.ff_mult)

    def at(torch, ours, layout=SAME):
        return Entry(torch, f"layers/{ours}", layout, layer=i)

    entries = []
    for torch, ours in ((own, "self_attention"), (cross, "cross_attention")):
        entries += [
            at(f"{torch}.null_kv", f"{ours}/null_kv"),
            *_norm(f"{torch}.norm", f"layers/{ours}/norm", model.dim, i),
            *(
                at(f"{torch}.{name}.1.weight", f"{ours}/{name}/kernel", LINEAR)
                for name in ("to_q", "to_kv", "to_out")
            ),
        ]
        if "output_norm" in model.compat:
            entries += _norm(f"{torch}.to_out.2", f"layers/{ours}/after_out", model.dim, i)
    return [
        *entries,
        Constant(f"{own}.rel_pos_bias.pos_indices", _offsets(model.fmap_size)),
        at(f"{own}.rel_pos_bias.pos_bias.weight", "bias"),
        *_norm(f"{mlp}.0", "layers/ff_norm", model.dim, i),
        at(f"{mlp}.1.weight", "wide/kernel", LINEAR),
        *_norm(f"{mlp}.3", "layers/ff_inner_norm", hidden, i),
        at(f"{mlp}.4.weight", "narrow/kernel", LINEAR),
    ]


def _norm(torch, ours, dim, layer=None):
    zeros = np.zeros((dim,), np.float32)  # a shift that the package saves and never trains
    return [Entry(f"{torch}.gamma", f"{ours}/scale", layer=layer), Constant(f"{torch}.beta", zeros)]


def _offsets(side):
    cells = np.arange(side * side)
    rows, columns = (c[:, None] - c[None, :] + side - 1 for c in (cells // side, cells % side))
    return (rows * (2 * side - 1) + columns).astype(np.int64)


def live(module: Any) -> dict[str, Any]:
    """The fields that a live Parti tells, and in "settings" arguments of the package's class that
    are none of the network's.

    Raises:
      UserError: an option that has no form here.
    """
    said = arguments.readable(_ARGUMENTS, module)
    tokens = module.image_token_embed.num_embeddings
    if not 0 <= said.get("ignore_index", -1) < tokens:  # it names no token
        said["ignore_index"] = -1
    arguments.check("Parti", arguments.PARTI, said)
    return {
        "max_text_len": said["max_text_len"],
        "dropout": float(said["dropout"]),
        "settings": {name: said[name] for name in ("cond_drop_prob", "t5_name") if name in said},
    }


_ARGUMENTS = {
    "max_text_len": lambda module: module.max_text_len,
    "dropout": lambda module: module.layers[0][0].to_q[0].p,
    "cond_drop_prob": lambda module: module.cond_drop_prob,
    "ignore_index": lambda module: module.ignore_index,
    "t5_name": lambda module: module.encode_texts.keywords["name"],
}


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays determine; the rest is told, or as by default."""
    if "compat" in told:
        config.check(Parti, "compat", told["compat"])
    size, dim = state["image_token_embed.weight"].shape
    dim_head, text_dim = state["layers.0.1.to_kv.1.weight"].shape
    hidden = state["layers.0.2.1.weight"].shape[0]
    old = ("output_norm",) if "layers.0.0.to_out.2.gamma" in state else ()
    compat = tuple(told.get("compat", ("misaligned_bias", *old)))
    found = {
        "dim": dim,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
        "dim_head": dim_head,
        "heads": state["layers.0.0.rel_pos_bias.pos_bias.weight"].shape[1],
        "ff_mult": hidden // dim if hidden % dim == 0 else ratio([(dim, hidden)]),
        "fmap_size": state["axial_height_pos"].shape[0],
        "codebook_size": size,
        "text_embed_dim": text_dim,
        # weights from here may be without the package's mistakes; norms they have or have not
        "compat": compat if ("output_norm" in compat) == bool(old) else ("misaligned_bias", *old),
    }
    return found | {name: told[name] for name in ("max_text_len", "dropout") if name in told}


@traced_once
def _shapes(model):
    ids, text = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, model.text_embed_dim))
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, text, jnp.ones((1, 1), bool))
    return sharding.unbox(shapes["params"])


def _both_live(module):
    """The fields of both networks, and the settings of each."""
    return {"parti": live(module), "tokenizer": vit_vqgan.live(module.vae)}


def _both_fields(state, told):
    of_parti, of_vae = dict(told.get("parti", {})), dict(told.get("tokenizer", {}))
    for name in told.keys() - {"parti", "tokenizer"}:  # what the user gives
        home = of_parti if name in config.fields_of(Parti) else of_vae
        home.setdefault(name, told[name])
    parti = fields(_without_vae(state), of_parti)
    tokenizer = vit_vqgan.fields(engine.part(state, _VAE), of_vae)
    side = parti["fmap_size"] * tokenizer["patch_size"]
    if side != tokenizer["image_size"]:
        raise UserError(
            f"Parti has vae_image_size={side}, and its tokenizer image_size="
            f"{tokenizer['image_size']}; give it a tokenizer of its size."
        )
    return {"parti": (Parti, parti), "tokenizer": (vit_vqgan.NETWORK.model, tokenizer)}


def _both_upgrade(state):
    vae = vit_vqgan.NETWORK.upgrade(engine.part(state, _VAE))
    return _without_vae(state) | {_VAE + key: value for key, value in vae.items()}


def _without_vae(state):
    return {key: value for key, value in state.items() if not key.startswith(_VAE)}


def _both_table(model):
    tokenizer = vit_vqgan.NETWORK.table(model.tokenizer)
    return engine.within(table(model.parti), "", "parti") + engine.within(
        tokenizer, _VAE, "tokenizer"
    )


def _both_shapes(model):
    return {"parti": _shapes(model.parti), "tokenizer": vit_vqgan.NETWORK.shapes(model.tokenizer)}


def _is_parti(state):
    return "axial_height_pos" in state and "image_token_embed.weight" in state


NETWORK = Network(
    model=Parti,
    recognise=lambda state: _is_parti(state) and not any(key.startswith(_VAE) for key in state),
    fields=fields,
    told=live,
    table=table,
    shapes=_shapes,
)

WITH_TOKENIZER = Network(
    model=PartiAndTokenizer,
    recognise=lambda state: _is_parti(state) and any(key.startswith(_VAE) for key in state),
    fields=_both_fields,
    told=_both_live,
    table=_both_table,
    shapes=_both_shapes,
    ignore=("vae.vgg", "vae._vgg"),
    optional=(("tokenizer", "discriminator"),),
    upgrade=_both_upgrade,
)
