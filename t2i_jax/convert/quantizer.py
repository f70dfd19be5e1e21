"""The quantisers of vector-quantize-pytorch inside the image tokenizers of parti-pytorch and
muse-maskgit-pytorch: LFQ, and the codebook on the unit sphere.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from t2i_jax.convert.engine import LINEAR, SAME, Constant, Entry, State, reshaped

_CODEBOOK = "quantizer._codebook"


def table(model: Any, dim: int) -> list[Entry | Constant]:
    """The entries of a tokenizer's quantiser.

    Args:
      dim: channels of the feature map that is quantised.
    """
    return _lfq(model, dim) if model.lookup_free_quantization else _vq(model, dim)


def fields(state: State) -> dict[str, Any]:
    """The fields of a tokenizer that its saved quantiser determines."""
    if "quantizer.mask" in state:
        return {
            "lookup_free_quantization": True,
            "codebook_size": 2 ** state["quantizer.mask"].shape[0],
        }
    size, codebook_dim = state["quantizer._codebook.embed"].shape[-2:]
    return {"lookup_free_quantization": False, "codebook_size": size, "codebook_dim": codebook_dim}


def live(quantizer: Any) -> dict[str, Any]:
    """The fields of a tokenizer that a live quantiser's attributes determine."""
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


def _lfq(model, dim):
    bits = model.codebook_size.bit_length() - 1
    return [
        Constant("quantizer.mask", 2 ** np.arange(bits - 1, -1, -1)),
        *_projections(dim, bits),
    ]


def _vq(model, dim):
    size, width = model.codebook_size, model.codebook_dim
    rows = reshaped((1, size, width), (size, width))
    return [
        *_projections(dim, width),
        Entry("quantizer._codebook.initted", "stats/started"),
        Entry(
            "quantizer._codebook.cluster_size", "stats/cluster_size", reshaped((1, size), (size,))
        ),
        Entry("quantizer._codebook.embed_avg", "stats/embed_avg", rows),
        Entry("quantizer._codebook.embed", "stats/embed", rows),
    ]


def _projections(dim, codebook_dim):
    if codebook_dim == dim:
        return []
    return [
        Entry(f"quantizer.{name}.{torch}", f"generator/quantizer/{name}/{ours}", layout)
        for name in ("project_in", "project_out")
        for torch, ours, layout in (("weight", "kernel", LINEAR), ("bias", "bias", SAME))
    ]
