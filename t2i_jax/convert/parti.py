"""The Parti of parti-pytorch (0.2.0, and 0.1 with its norm after attention), alone or with its
tokenizer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.convert import engine, vit_vqgan
from t2i_jax.convert.engine import LINEAR, SAME, Constant, Entry, Network, State
from t2i_jax.models.parti import Parti, PartiAndTokenizer

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


def fields(state: State, module: Any) -> dict[str, Any]:
    """All of the configuration that shapes the network; the rest comes from a live module."""
    size, dim = state["image_token_embed.weight"].shape
    dim_head, text_dim = state["layers.0.1.to_kv.1.weight"].shape
    hidden = state["layers.0.2.1.weight"].shape[0]
    old = ("output_norm",) if "layers.0.0.to_out.2.gamma" in state else ()
    found = {
        "dim": dim,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
        "dim_head": dim_head,
        "heads": state["layers.0.0.rel_pos_bias.pos_bias.weight"].shape[1],
        "ff_mult": hidden // dim if hidden % dim == 0 else hidden / dim,
        "fmap_size": state["axial_height_pos"].shape[0],
        "codebook_size": size,
        "text_embed_dim": text_dim,
        "compat": ("misaligned_bias", *old),
    }
    if module is not None:
        found |= {
            "max_text_len": module.max_text_len,
            "dropout": float(module.layers[0][0].to_q[0].p),
        }
    return found


def _shapes(model):
    ids, text = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, model.text_embed_dim))
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, text, jnp.ones((1, 1), bool))
    return sharding.unbox(shapes["params"])


def _both_fields(state, module):
    tokenizer = vit_vqgan.NETWORK.fields(
        engine.part(state, _VAE), None if module is None else module.vae
    )
    return {
        "parti": Parti(**fields(_without_vae(state), module)),
        "tokenizer": vit_vqgan.NETWORK.model(**tokenizer),
    }


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
    table=table,
    shapes=_shapes,
)

WITH_TOKENIZER = Network(
    model=PartiAndTokenizer,
    recognise=lambda state: _is_parti(state) and any(key.startswith(_VAE) for key in state),
    fields=_both_fields,
    table=_both_table,
    shapes=_both_shapes,
    ignore=("vae.vgg", "vae._vgg"),
    optional=(("tokenizer", "discriminator"),),
    upgrade=_both_upgrade,
)
