"""The image tokenizer of muse-maskgit-pytorch (0.3.5 and its first releases) and its
discriminator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from t2i_jax.convert import arguments, quantizer
from t2i_jax.convert.engine import CONV, CONV1X1, SAME, Constant, Entry, Layout, Network, State
from t2i_jax.models.vqgan import VQGanVAE

UPCONV = Layout(
    "transposed conv (I, O, H, W) <-> (H, W, I, O)",
    lambda a: a.transpose(2, 3, 0, 1),
    lambda a: a.transpose(2, 3, 0, 1),
)


def table(model: VQGanVAE) -> list[Entry | Constant]:
    """The entries of one configuration; the discriminator's are left out with `discr_layers=0`."""
    encoders = [("first", "conv")]
    for i, count in enumerate(model.blocks):
        encoders += [(f"down_{i}", "strided"), *((f"block_{i}_{j}", "block") for j in range(count))]
    decoders = []
    for i in reversed(range(model.layers)):
        # The package puts each new block before the others of its level.
        decoders += [(f"block_{i}_{j}", "gated") for j in range(model.blocks[i])]
        decoders += [(f"up_{i}", "up")]
    return [
        *_stack("enc_dec.encoders", "generator/encoder", encoders),
        *_stack("enc_dec.decoders", "generator/decoder", decoders),
        *_conv(f"enc_dec.decoders.{len(decoders)}", "generator/to_pixels", CONV1X1),
        *quantizer.table(model, model.dims[-1]),
        *(_discriminator(model) if model.discr_layers else []),
    ]


def live(module: Any) -> dict[str, Any]:
    """The fields that a live tokenizer tells beside its weights, and in "settings" arguments of the
    package's class that are none of the network's.

    Raises:
      UserError: an option of its quantiser that has no form here.
    """
    norms = [m for m in module.enc_dec.modules() if type(m).__name__ == "GroupNorm"]
    return {
        **({"resnet_groups": norms[0].num_groups} if norms else {}),
        **quantizer.live(module.quantizer),
        "settings": arguments.readable(quantizer.SETTINGS, module),
    }


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays determine; the rest is told, or as by default.

    The image size is not among it: the network is convolutional.
    """
    first = state["enc_dec.encoders.0.weight"]
    dim, channels = first.shape[:2]
    levels, blocks = [], []
    for i in range(1, 1 + max(_index(key) for key in state if "enc_dec.encoders." in key)):
        strided = state.get(f"enc_dec.encoders.{i}.0.weight")
        if strided is not None:
            levels.append(strided.shape[0])
            blocks.append(0)
        else:
            blocks[-1] += 1
    found = {
        "dim": dim,
        "channels": channels,
        "layers": len(levels),
        "first_conv_kernel_size": first.shape[2],
        "discr_layers": sum(
            key.startswith("discr.layers.") and key.endswith(".1.weight") for key in state
        ),
    }
    if any(width % dim for width in levels):
        raise ValueError(f"levels of {levels} channels are no multiples of {dim}")
    mults = tuple(width // dim for width in levels)
    if mults != tuple(2**i for i in range(len(mults))):
        found["layer_mults"] = mults
    only_last = not any(blocks[:-1])
    found["num_resnet_blocks"] = blocks[-1] if only_last else tuple(blocks)
    found |= quantizer.fields(state)
    return found | {name: told[name] for name in ("resnet_groups", *quantizer.TOLD) if name in told}


def _index(key):
    return int(re.match(r"enc_dec\.encoders\.(\d+)", key).group(1))


def _stack(torch, ours, layers):
    entries = []
    for i, (name, kind) in enumerate(layers):
        if kind == "conv":
            entries += _conv(f"{torch}.{i}", f"{ours}/{name}", CONV)
        elif kind in ("strided", "up"):
            layout = CONV if kind == "strided" else UPCONV
            entries += _conv(f"{torch}.{i}.0", f"{ours}/{name}", layout)
        else:
            entries += _block(f"{torch}.{i}.net", f"{ours}/{name}", kind)
    return entries


def _block(torch, ours, kind):
    convs, norms = ((0, 3, 6), (2, 5)) if kind == "gated" else ((0, 3, 6), (1, 4))
    return [
        *_conv(f"{torch}.{convs[0]}", f"{ours}/conv_0", CONV),
        *_norm(f"{torch}.{norms[0]}", f"{ours}/norm_0"),
        *_conv(f"{torch}.{convs[1]}", f"{ours}/conv_1", CONV),
        *_norm(f"{torch}.{norms[1]}", f"{ours}/norm_1"),
        *_conv(f"{torch}.{convs[2]}", f"{ours}/out", CONV1X1),
    ]


def _conv(torch, ours, layout):
    return [
        Entry(f"{torch}.weight", f"{ours}/kernel", layout),
        Entry(f"{torch}.bias", f"{ours}/bias"),
    ]


def _norm(torch, ours):
    return [
        Entry(f"{torch}.weight", f"{ours}/scale", SAME),
        Entry(f"{torch}.bias", f"{ours}/bias"),
    ]


def _discriminator(model):
    ours = "discriminator"
    entries = _conv("discr.layers.0.0", f"{ours}/first", CONV)
    for i in range(model.discr_layers):
        entries += _conv(f"discr.layers.{i + 1}.0", f"{ours}/down_{i}", CONV)
        entries += _norm(f"discr.layers.{i + 1}.1", f"{ours}/norm_{i}")
    for i, torch in enumerate((0, 2)):
        entries += _conv(f"discr.to_logits.{torch}", f"{ours}/to_logits_{i}", CONV)
    return entries


NETWORK = Network(
    model=VQGanVAE,
    recognise=lambda state: "enc_dec.encoders.0.weight" in state,
    fields=fields,
    told=live,
    table=table,
    shapes=quantizer.shapes,
    optional=(("discriminator",),),
    upgrade=quantizer.upgrade,
)
