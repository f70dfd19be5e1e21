"""Whole priors of dalle2-pytorch 1.15.6: a `DiffusionPrior` with its schedule and its CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2i_jax.convert import arguments, diffusion_prior, engine, x_clip
from t2i_jax.convert.engine import Network, Row, State, Unused
from t2i_jax.models.dalle2 import PriorAndClip
from t2i_jax.models.decoder_cascade import buffers, noise_of

_OF_TABLES = ("timesteps", "schedule", "p2_gamma", "p2_k")  # what the tables of a diffusion tell
NET, _NOISE, _CLIP = "net.", "noise_scheduler.", x_clip.WITHIN


def table(model: PriorAndClip) -> list[Row]:
    """The entries of one configuration."""
    rows = engine.within(diffusion_prior.table(model.network), NET, "network")
    rows += [Unused(_NOISE + name, value) for name, value in buffers(model.noise).items()]
    if model.clip is not None:
        rows += engine.within(x_clip.NETWORK.table(model.clip), _CLIP, "clip")
    return rows


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The class and the fields of each network, and of the diffusion.

    Raises:
      UserError: a CLIP of another package than x-clip.
    """
    own = diffusion_prior.fields(engine.part(state, NET), told.get("network", {}))
    noise = noise_of(*(state[_NOISE + name] for name in ("betas", "p2_loss_weight")))
    found: dict[str, Any] = {
        "network": (diffusion_prior.NETWORK.model, own),
        "noise": (type(noise), {name: getattr(noise, name) for name in _OF_TABLES}),
    }
    if any(key.startswith(_CLIP) for key in state):
        found["clip"] = x_clip.adapted(engine.part(state, _CLIP), told)
    return found


def live(module: Any) -> dict[str, Any]:
    """The settings of a live `DiffusionPrior`: fields of its networks; "settings" has arguments of
    its class.

    Raises:
      UserError: an option that has no form here.
    """
    said = arguments.readable(_READERS, module)
    arguments.check("DiffusionPrior", arguments.DIFFUSION_PRIOR, said)
    told = {"settings": said, "network": diffusion_prior.live(module.net)}
    inside = getattr(module.clip, "clip", None)
    if inside is not None and hasattr(inside, "text_transformer"):
        told["clip"] = x_clip.live(inside)
    return told


_READERS = {
    name: lambda module, name=name: getattr(module, name)
    for name in (
        "text_cond_drop_prob", "image_cond_drop_prob", "predict_x_start", "predict_v",
        "condition_on_text_encodings", "sampling_clamp_l2norm", "sampling_final_clamp_l2norm",
        "training_clamp_l2norm", "init_image_embed_l2norm", "image_embed_scale",
        "sample_timesteps",
    )
} | {"loss_type": lambda module: module.noise_scheduler.loss_type}  # fmt: skip


def recognise(state: State) -> bool:
    """Whether a state dict is that of a `DiffusionPrior`."""
    return diffusion_prior.recognise(engine.part(state, NET)) and f"{_NOISE}betas" in state


def _shapes(model):
    found = {"network": diffusion_prior.shapes(model.network)}
    if model.clip is not None:
        found["clip"] = x_clip.NETWORK.shapes(model.clip)
    return found


PRIOR = Network(
    model=PriorAndClip,
    recognise=recognise,
    fields=fields,
    told=live,
    table=table,
    shapes=_shapes,
    ignore=(f"{_CLIP}visual_ssl.",),
    upgrade=lambda state: engine.upgraded(state, _CLIP, x_clip.upgrade),
)
