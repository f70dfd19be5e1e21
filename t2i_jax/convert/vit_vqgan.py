"""The image tokenizer of parti-pytorch (0.2.0 and its first releases) and its discriminator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import config, values
from t2i_jax.convert import arguments, quantizer
from t2i_jax.convert.engine import (
    CHANNEL,
    CONV,
    CONV1X1,
    DEPTHWISE,
    SAME,
    Constant,
    Entry,
    Network,
    State,
)
from t2i_jax.errors import UserError
from t2i_jax.models.vit_vqgan import VitVQGanVAE


def table(model: VitVQGanVAE) -> list[Entry | Constant]:
    """The entries of one configuration; the discriminator's are left out with `discr_layers=0`.

    Raises:
      UserError: a network with parts that the package does not have.
    """
    if model.pixel_head != "linear":
        raise UserError(
            f"pixel_head={model.pixel_head!r} has no form in the package, whose last layer is "
            "linear; t2i export writes the system as it is."
        )
    encoder, decoder = "enc_dec.encoder", "enc_dec.decoder"
    return [
        Entry(f"{encoder}.0.to_patch_tokens.1.gamma", "generator/patch_norm/scale", CHANNEL),
        Entry(f"{encoder}.0.to_patch_tokens.2.weight", "generator/to_tokens/kernel", CONV1X1),
        Entry(f"{encoder}.0.to_patch_tokens.2.bias", "generator/to_tokens/bias"),
        *_transformer(f"{encoder}.1", "generator/encoder", model),
        *_transformer(f"{decoder}.0", "generator/decoder", model),
        Entry(f"{decoder}.1.1.weight", "generator/widen/kernel", CONV),
        Entry(f"{decoder}.1.3.weight", "generator/to_pixels/kernel", CONV1X1),
        *quantizer.table(model, model.dim),
        *(_discriminator(model) if model.discr_layers else []),
    ]


def live(module: Any) -> dict[str, Any]:
    """The fields that a live tokenizer tells, and in "settings" arguments of the package's class
    that are none of the network's.

    Raises:
      UserError: an option of its quantiser that has no form here.
    """
    attention = module.enc_dec.encoder[1].layers[0][1]
    return {
        "image_size": module.image_size,
        "channels": module.channels,
        "patch_size": module.enc_dec.patch_size,
        "heads": attention.heads,
        "dim_head": round(attention.scale**-2),
        "codebook_size": module.codebook_size,
        "settings": arguments.readable(quantizer.SETTINGS, module),
        **quantizer.live(module.quantizer),
    }


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays and `told` determine.

    Args:
      told: fields that a live module or the user tells. Without a discriminator nothing else tells
        one channel from four channels at half the patch size.
    """
    bias = state["enc_dec.encoder.1.layers.0.1.rel_pos_bias.pos_bias.weight"]
    grid, heads = (math.isqrt(bias.shape[0]) + 1) // 2, bias.shape[1]
    dim = state["enc_dec.encoder.1.norm.gamma"].shape[1]
    channels, patch = _patch(state, grid, told)
    found = {
        "dim": dim,
        "image_size": grid * patch,
        "channels": channels,
        "layers": 1
        + max(int(k.split(".")[4]) for k in state if k.startswith("enc_dec.encoder.1.layers.")),
        "patch_size": patch,
        "heads": heads,
        "dim_head": state["enc_dec.encoder.1.layers.0.1.to_out.weight"].shape[1] // heads,
        "ff_mult": state["enc_dec.encoder.1.layers.0.2.1.weight"].shape[0] // dim,
        "discr_layers": sum(
            k.startswith("discr.layers.") and k.endswith(".3.block.groupnorm.weight") for k in state
        ),
    }
    found |= quantizer.fields(state) | {name: told[name] for name in quantizer.TOLD if name in told}
    for name in ("heads", "dim_head", "codebook_size"):
        if name in told:
            config.check(VitVQGanVAE, name, told[name])
        if told.get(name, found[name]) != found[name]:
            raise UserError(
                f"{name}={values.shown(told[name])} contradicts the weights ({found[name]!r}); "
                "leave it out."
            )
    return found


def _patch(state, grid, told):
    """The channels and pixels per side of a patch, of whose pixels only the number is known."""
    pixels = state["enc_dec.decoder.1.3.weight"].shape[0]
    stem = state.get("discr.layers.0.0.convs.0.weight")
    possible = [
        {"channels": pixels // side**2, "patch_size": side, "image_size": grid * side}
        for side in range(1, math.isqrt(pixels) + 1)
        if pixels % side**2 == 0
    ]
    if stem is not None:
        possible = [one for one in possible if one["channels"] == stem.shape[1]]
    given = {name: told[name] for name in ("channels", "patch_size", "image_size") if name in told}
    fitting = [one for one in possible if all(one[n] == value for n, value in given.items())]
    usual = [one for one in fitting if one["channels"] <= 4]
    for chosen in (fitting, usual):
        if len(chosen) == 1:
            return chosen[0]["channels"], chosen[0]["patch_size"]
    shown = " or ".join(
        f"channels={one['channels']} with patch_size={one['patch_size']}"
        for one in reversed(usual or possible)
    )
    if not fitting:
        said = ", ".join(f"{name}={values.shown(value)}" for name, value in given.items())
        raise UserError(f"{said} contradicts the weights, which are of {shown}; correct it.")
    raise UserError(f"the weights are of {shown}; give channels.")


def _transformer(torch, ours, model):
    entries = []
    index = np.arange(model.grid[0])
    rows, columns = (t.reshape(-1) for t in np.meshgrid(index, index, indexing="ij"))
    offsets = [t[:, None] - t[None, :] + model.grid[0] - 1 for t in (rows, columns)]
    indices = (offsets[0] * (2 * model.grid[0] - 1) + offsets[1]).astype(np.int64)
    for i in range(model.layers):
        peg, attention, mlp = (f"{torch}.layers.{i}.{j}" for j in range(3))
        entries += [
            *_depthwise(f"{peg}.proj", f"{ours}/peg_{i}"),
            Entry(f"{attention}.norm.gamma", f"{ours}/attention_{i}/norm/scale", CHANNEL),
            Entry(f"{attention}.to_qkv.weight", f"{ours}/attention_{i}/to_qkv/kernel", CONV1X1),
            *(e for j in range(3) for e in _depthwise(
                f"{attention}.primer_ds_convs.{j}.proj", f"{ours}/attention_{i}/{'qkv'[j]}_conv"
            )),
            Entry(f"{attention}.to_out.weight", f"{ours}/attention_{i}/to_out/kernel", CONV1X1),
            Constant(f"{attention}.rel_pos_bias.pos_indices", indices),
            Entry(f"{attention}.rel_pos_bias.pos_bias.weight", f"{ours}/attention_{i}/bias"),
            Entry(f"{mlp}.0.gamma", f"{ours}/mlp_{i}/norm/scale", CHANNEL),
            Entry(f"{mlp}.1.weight", f"{ours}/mlp_{i}/wide/kernel", CONV1X1),
            *_depthwise(f"{mlp}.3.proj", f"{ours}/mlp_{i}/conv"),
            Entry(f"{mlp}.4.weight", f"{ours}/mlp_{i}/narrow/kernel", CONV1X1),
        ]  # fmt: skip
    return [*entries, Entry(f"{torch}.norm.gamma", f"{ours}/norm/scale", CHANNEL)]


def _depthwise(torch, ours):
    return [
        Entry(f"{torch}.weight", f"{ours}/kernel", DEPTHWISE),
        Entry(f"{torch}.bias", f"{ours}/bias"),
    ]


def _discriminator(model):
    names = [(f"layers.0.0.convs.{i}", f"stem_{k}") for i, k in enumerate((3, 7, 15))]
    norms = []
    for i in range(model.discr_layers):
        layer = f"layers.{i + 1}"
        names += [(f"{layer}.0", f"down_{i}"), (f"{layer}.3.block.project", f"block_{i}")]
        norms += [(f"{layer}.2", f"norm_{i}"), (f"{layer}.3.block.groupnorm", f"block_norm_{i}")]
    names += [("to_logits.0", "to_logits_0"), ("to_logits.2", "to_logits_1")]
    weights = [
        *((f"{torch}.weight", f"{ours}/kernel", CONV) for torch, ours in names),
        *((f"{torch}.weight", f"{ours}/scale", SAME) for torch, ours in norms),
        *((f"{torch}.bias", f"{ours}/bias", SAME) for torch, ours in names + norms),
    ]
    return [
        Entry(f"discr.{torch}", f"discriminator/{ours}", layout) for torch, ours, layout in weights
    ]


NETWORK = Network(
    model=VitVQGanVAE,
    recognise=lambda state: "enc_dec.encoder.0.to_patch_tokens.1.gamma" in state,
    fields=fields,
    told=live,
    table=table,
    shapes=quantizer.shapes,
    optional=(("discriminator",),),
    upgrade=quantizer.upgrade,
)
