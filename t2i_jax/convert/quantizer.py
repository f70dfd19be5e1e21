"""The quantisers in the state dicts of parti-pytorch and muse-maskgit-pytorch: those of
vector-quantize-pytorch, LFQ and the codebook on the unit sphere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t2i_jax import sharding
from t2i_jax.convert import arguments
from t2i_jax.convert.engine import LINEAR, SAME, Constant, Entry, State, reshaped
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer

_CODEBOOK = "quantizer._codebook"
# fields of the losses, which no array tells
TOLD = ("entropy_loss_weight", "diversity_gamma", "commitment_weight", "decay", "rotation_trick")
# How a live tokenizer tells arguments of its class that are none of the network's.
SETTINGS: Mapping[str, Callable[[Any], Any]] = {
    "l2_recon_loss": lambda module: module.recon_loss_fn.__name__ == "mse_loss",
    "use_hinge_loss": lambda module: module.gen_loss.__name__ == "hinge_gen_loss",
    "use_vgg_and_gan": lambda module: module.use_vgg_and_gan,
}


def table(model: Any, dim: int) -> list[Entry | Constant]:
    """The entries of a tokenizer's quantiser.

    Args:
      dim: channels of the feature map that is quantised.

    Raises:
      UserError: FSQ, which the packages do not have.
    """
    if model.fsq_levels is not None:
        raise UserError(
            f"fsq_levels={model.fsq_levels} has no form in the package, which has LFQ and a "
            "codebook; t2i export writes the system as it is."
        )
    return _lfq(model, dim) if model.lookup_free_quantization else _vq(model, dim)


def discriminator(model: Any) -> Any | None:
    """The discriminator that the package makes beside a tokenizer; None where it makes none: with
    `discr_layers=0`, or for widths that no group norm of it has, `use_vgg_and_gan=False` there.
    """
    if not model.discr_layers:
        return None
    try:
        return model.discriminator()
    except UserError:
        return None


def shapes(model: Any) -> dict[str, Any]:
    """Shapes of a tokenizer's weights, unboxed, with those of its discriminator where it has
    one.
    """
    found = image_tokenizer.abstract(model)
    if (adversary := discriminator(model)) is not None:
        found["discriminator"] = image_tokenizer.abstract_discriminator(adversary, model)
    return sharding.unbox(found)


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
    """The fields of a tokenizer that a live quantiser's attributes determine.

    Raises:
      UserError: an option that changes what the quantiser computes and has no form here.
    """
    if hasattr(quantizer, "diversity_gamma"):
        said = arguments.readable(_LFQ_ARGUMENTS, quantizer)
        arguments.check("LFQ", arguments.LFQ, said)
        return {
            "entropy_loss_weight": float(said["entropy_loss_weight"]),
            "diversity_gamma": float(said["diversity_gamma"]),
            "commitment_weight": float(said["commitment_loss_weight"]),
        }
    said = arguments.readable(_VQ_ARGUMENTS, quantizer)
    arguments.check("VectorQuantize", arguments.VECTOR_QUANTIZE, said)
    return {
        "decay": float(said["decay"]),
        # without a loss it has no weight
        "commitment_weight": max(float(said["commitment_weight"]), 0.0),
        # releases before it went straight through
        "rotation_trick": bool(said.get("rotation_trick", False)),
    }


def _name(of):
    return getattr(of, "__name__", type(of).__name__)


# How a live quantiser tells what it was made with.
_LFQ_ARGUMENTS: Mapping[str, Callable[[Any], Any]] = {
    "entropy_loss_weight": lambda q: q.entropy_loss_weight,
    "commitment_loss_weight": lambda q: q.commitment_loss_weight,
    "diversity_gamma": lambda q: q.diversity_gamma,
    "straight_through_activation": lambda q: _name(q.activation),
    "num_codebooks": lambda q: q.num_codebooks,
    "keep_num_codebooks_dim": lambda q: q.keep_num_codebooks_dim,
    "codebook_scale": lambda q: q.codebook_scale,
    "frac_per_sample_entropy": lambda q: q.frac_per_sample_entropy,
    "has_projections": lambda q: (
        None
        if q.has_projections == (q.dim != q.codebook_dim * q.num_codebooks)
        else q.has_projections
    ),
    "projection_has_bias": lambda q: not q.has_projections or q.project_out.bias is not None,
    "soft_clamp_input_value": lambda q: q.soft_clamp_input_value,
    "cosine_sim_project_in": lambda q: _name(q.project_in) == "CosineSimLinear",
    "channel_first": lambda q: q.channel_first,
    "experimental_softplus_entropy_loss": lambda q: q.experimental_softplus_entropy_loss,
    "spherical": lambda q: q.spherical,
    "orthogonal_rotation": lambda q: q.orthogonal_rotation,
}
_VQ_ARGUMENTS: Mapping[str, Callable[[Any], Any]] = {
    "decay": lambda q: q._codebook.decay,
    "commitment_weight": lambda q: q.commitment_weight,
    "rotation_trick": lambda q: q.rotation_trick,
    "heads": lambda q: q.heads,
    "separate_codebook_per_head": lambda q: q.separate_codebook_per_head,
    "eps": lambda q: q._codebook.eps,
    "freeze_codebook": lambda q: q.freeze_codebook,
    "kmeans_iters": lambda q: 10 if bool(q._codebook.initted) else q._codebook.kmeans_iters,
    "use_cosine_sim": lambda q: q.use_cosine_sim,
    "layernorm_after_project_in": lambda q: _name(q.project_in) == "Sequential",
    "threshold_ema_dead_code": lambda q: q._codebook.threshold_ema_dead_code,
    "accept_image_fmap": lambda q: q.accept_image_fmap,
    "accept_3d_fmap": lambda q: q.accept_3d_fmap,
    "commitment_use_cross_entropy_loss": lambda q: q.commitment_use_cross_entropy_loss,
    "orthogonal_reg_weight": lambda q: q.orthogonal_reg_weight,
    "codebook_diversity_loss_weight": lambda q: q.codebook_diversity_loss_weight,
    "stochastic_sample_codes": lambda q: q._codebook.gumbel_sample.keywords["stochastic"],
    "straight_through": lambda q: q._codebook.gumbel_sample.keywords["straight_through"],
    "directional_reparam": lambda q: q.directional_reparam,
    "ema_update": lambda q: q._codebook.ema_update,
    "vq_bridge": lambda q: q._codebook.vq_bridge,
    "manual_ema_update": lambda q: q._codebook.manual_ema_update,
    "learnable_codebook": lambda q: q._codebook.learnable_codebook,
    "in_place_codebook_optimizer": lambda q: q.in_place_codebook_optimizer,
    "affine_param": lambda q: q._codebook.affine_param,
    "sync_update_v": lambda q: q.sync_update_v,
    "route_gradients_to_input": lambda q: q.route_gradients_to_input,
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
