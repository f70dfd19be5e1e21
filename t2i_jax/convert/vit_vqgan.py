"""The image tokenizer of parti-pytorch (0.2.0 and its first releases) and its discriminator."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from t2i_jax import sharding
from t2i_jax.convert.engine import (
    CHANNEL,
    CONV,
    CONV1X1,
    DEPTHWISE,
    LINEAR,
    SAME,
    Constant,
    Entry,
    Network,
    State,
    reshaped,
)
from t2i_jax.models import image_tokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE

_CODEBOOK = "quantizer._codebook"


def table(model: VitVQGanVAE) -> list[Entry | Constant]:
    """The entries of one configuration; the discriminator's are left out with `discr_layers=0`."""
    encoder, decoder = "enc_dec.encoder", "enc_dec.decoder"
    return [
        Entry(f"{encoder}.0.to_patch_tokens.1.gamma", "generator/patch_norm/scale", CHANNEL),
        Entry(f"{encoder}.0.to_patch_tokens.2.weight", "generator/to_tokens/kernel", CONV1X1),
        Entry(f"{encoder}.0.to_patch_tokens.2.bias", "generator/to_tokens/bias"),
        *_transformer(f"{encoder}.1", "generator/encoder", model),
        *_transformer(f"{decoder}.0", "generator/decoder", model),
        Entry(f"{decoder}.1.1.weight", "generator/widen/kernel", CONV),
        Entry(f"{decoder}.1.3.weight", "generator/to_pixels/kernel", CONV1X1),
        *(_lfq(model) if model.lookup_free_quantization else _vq(model)),
        *(_discriminator(model) if model.discr_layers else []),
    ]


def fields(state: State, module: Any) -> dict[str, Any]:
    """All of the configuration that shapes the network; settings of the losses come from a live
    module.
    """
    bias = state["enc_dec.encoder.1.layers.0.1.rel_pos_bias.pos_bias.weight"]
    grid, heads = (math.isqrt(bias.shape[0]) + 1) // 2, bias.shape[1]
    dim = state["enc_dec.encoder.1.norm.gamma"].shape[1]
    patch_pixels = state["enc_dec.decoder.1.3.weight"].shape[0]
    stem = state.get("discr.layers.0.0.convs.0.weight")
    sizes = (stem.shape[1],) if stem is not None else (3, 1, 4)
    sides = {c: math.isqrt(patch_pixels // c) for c in sizes}
    channels = next(c for c in sizes if sides[c] ** 2 * c == patch_pixels)
    patch = sides[channels]
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
    return (
        found
        | _quantizer_fields(state, dim)
        | (_live_fields(module.quantizer) if module is not None else {})
    )


def upgrade(state: State) -> dict[str, np.ndarray]:
    """A state dict of the releases 0.0.15 to 0.0.18, whose quantiser is `vq.`, as one of 0.2.0.

    Their codebook has another shape of `initted`, and may lack the axis of heads and `embed_avg`,
    which is its centres times their counts.
    """
    state = {re.sub(r"^vq\.", "quantizer.", key): value for key, value in state.items()}
    embed = state.get(f"{_CODEBOOK}.embed")
    if embed is None:
        return state
    state |= {
        name: value.reshape(()) for name, value in state.items() if name == f"{_CODEBOOK}.initted"
    }
    if embed.ndim == 2:
        heads = {
            name: state[name][None]
            for name in state
            if re.fullmatch(rf"{_CODEBOOK}\.(embed|cluster)\w*", name)
        }
        state |= heads
    counts = state.get(f"{_CODEBOOK}.cluster_size")
    if counts is not None and f"{_CODEBOOK}.embed_avg" not in state:
        # A code that was never used keeps its direction.
        state[f"{_CODEBOOK}.embed_avg"] = (
            state[f"{_CODEBOOK}.embed"] * np.maximum(counts, 1e-3)[..., None]
        )
    return state


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


def _projections(model, codebook_dim):
    if codebook_dim == model.dim:
        return []
    return [
        Entry(f"quantizer.{name}.{torch}", f"generator/quantizer/{name}/{ours}", layout)
        for name in ("project_in", "project_out")
        for torch, ours, layout in (("weight", "kernel", LINEAR), ("bias", "bias", SAME))
    ]


def _lfq(model):
    bits = model.codebook_size.bit_length() - 1
    return [
        Constant("quantizer.mask", 2 ** np.arange(bits - 1, -1, -1)),
        *_projections(model, bits),
    ]


def _vq(model):
    size, dim = model.codebook_size, model.codebook_dim
    rows = reshaped((1, size, dim), (size, dim))
    return [
        *_projections(model, dim),
        Entry("quantizer._codebook.initted", "stats/started"),
        Entry(
            "quantizer._codebook.cluster_size", "stats/cluster_size", reshaped((1, size), (size,))
        ),
        Entry("quantizer._codebook.embed_avg", "stats/embed_avg", rows),
        Entry("quantizer._codebook.embed", "stats/embed", rows),
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


def _quantizer_fields(state, dim):
    if "quantizer.mask" in state:
        return {
            "lookup_free_quantization": True,
            "codebook_size": 2 ** state["quantizer.mask"].shape[0],
        }
    size, codebook_dim = state["quantizer._codebook.embed"].shape[-2:]
    return {"lookup_free_quantization": False, "codebook_size": size, "codebook_dim": codebook_dim}


def _live_fields(quantizer):
    if hasattr(quantizer, "diversity_gamma"):
        return {
            "entropy_loss_weight": float(quantizer.entropy_loss_weight),
            "diversity_gamma": float(quantizer.diversity_gamma),
            "commitment_weight": float(quantizer.commitment_loss_weight),
        }
    return {
        "decay": float(quantizer._codebook.decay),
        "commitment_weight": float(quantizer.commitment_weight),
    }


def _shapes(model):
    shapes = image_tokenizer.abstract(model)
    if model.discr_layers:
        shapes["discriminator"] = image_tokenizer.abstract_discriminator(
            model.discriminator(), model
        )
    return sharding.unbox(shapes)


NETWORK = Network(
    model=VitVQGanVAE,
    recognise=lambda state: "enc_dec.encoder.0.to_patch_tokens.1.gamma" in state,
    fields=fields,
    table=table,
    shapes=_shapes,
    optional=(("discriminator",),),
    upgrade=upgrade,
)
