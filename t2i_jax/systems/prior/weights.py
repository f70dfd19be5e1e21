"""Priors of dalle2-pytorch: a `DiffusionPrior`, alone or with its CLIP, and what its trainer
saved.
"""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import convert
from t2i_jax.convert import (
    arguments,
    dalle2_prior,
    diffusion_prior,
    engine,
    torch_io,
    untold,
)
from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.errors import UserError
from t2i_jax.models.dalle2 import PriorAndClip
from t2i_jax.systems.clip import weights as clips
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.prior.options import COMPAT, UNCLIPPED, PriorOptions
from t2i_jax.systems.prior.task import PriorTask
from t2i_jax.values import Count, Fraction, Positive

_SPHERE = {
    "init": "init_image_embed_l2norm",
    "training": "training_clamp_l2norm",
    "sampling": "sampling_clamp_l2norm",
    "final": "sampling_final_clamp_l2norm",
}


class _Arguments(typing.TypedDict, total=False):
    """The types of arguments of the package's class."""

    cond_drop_prob: Fraction
    text_cond_drop_prob: Fraction | None
    image_cond_drop_prob: Fraction | None
    predict_x_start: bool
    predict_v: bool
    condition_on_text_encodings: bool
    sampling_clamp_l2norm: bool
    sampling_final_clamp_l2norm: bool
    training_clamp_l2norm: bool
    init_image_embed_l2norm: bool
    image_embed_scale: Positive | None
    sample_timesteps: Count | None


_KINDS = typing.get_type_hints(_Arguments, include_extras=True)


def from_torch(file: TorchFile) -> Imported | None:
    """The prior of a file, of its trainer's files the EMA weights; None where it holds another
    network.

    Raises:
      UserError: arguments that do not fit the weights.
    """
    read = trainer(file)
    if read is None:
        read = convert.Weights(file.network, dict(file.params), file.told, file.beside)
    if not isinstance(read.model, PriorAndClip):
        return None
    settings = {**read.told.get("settings", {}), **file.options("prior")}
    return imported(read.model, read.params, settings, clips.within_file(file, read))


def trainer(file: TorchFile) -> convert.Weights | None:
    """The averaged weights of a file that the package's `DiffusionPriorTrainer` saved; None for
    another file.
    """
    loaded = file.loaded
    averaged = loaded.get("ema_model") if isinstance(loaded, Mapping) else None
    if not isinstance(averaged, Mapping) or "net.learned_query" not in averaged:
        return None
    return convert.weights(averaged, file.fields)


def imported(
    model: PriorAndClip,
    params: Mapping[str, Any],
    settings: Mapping[str, Any],
    clip: Imported | None,
) -> Imported:
    """A prior from what `convert.weights` gives.

    Args:
      settings: arguments of the package's class. clip: that of the prior; None: it has none.

    Raises:
      UserError: an argument that has no form here, or a value of another type.
    """
    arguments.check("prior", arguments.DIFFUSION_PRIOR, settings)
    arguments.check_kinds("prior", _KINDS, settings)
    noise = dataclasses.replace(
        model.noise, objective=_objective(settings), distance=settings.get("loss_type", "l2")
    )
    sphere = _on_sphere(settings)
    has_quirk = model.network.self_cond or "training" in sphere
    dropped = settings.get("cond_drop_prob", 0.0)
    text, image = (settings.get(f"{of}_cond_drop_prob") for of in ("text", "image"))
    task = PriorTask(
        model.network,
        noise,
        model.clip,
        use_encodings=_use_encodings(model, settings),
        text_drop_prob=dropped if text is None else text,
        image_drop_prob=dropped if image is None else image,
        scale=settings.get("image_embed_scale"),
        on_sphere=sphere,
        stored=model.clip is None,
        compat=COMPAT if has_quirk and noise.objective != "x_start" else None,
    )
    parts, size = ({}, 1) if clip is None else ({"clip": clip}, clip.image_size)
    return Imported(
        "DiffusionPrior", task, {"prior": params["network"]}, {}, size, parts,
        options_of(settings, noise),
    )  # fmt: skip


def _use_encodings(model, settings):
    """Whether the network reads the encodings of tokens, by default where those of its CLIP are as
    wide as it is: the package has no projection between them.
    """
    fit = model.clip is None or model.clip.text_width == model.network.dim
    asked = settings.get("condition_on_text_encodings", fit)
    if asked and not fit:
        raise UserError(
            "prior.condition_on_text_encodings=True, and the encodings of its CLIP are "
            f"{model.clip.text_width} wide where the network has dim={model.network.dim}; give "
            "False."
        )
    return asked


def options_of(settings: Mapping[str, Any], noise: DiscreteDdpm) -> PriorOptions:
    """The options by which the package samples: every timestep, or DDIM where told fewer."""
    steps = settings.get("sample_timesteps")
    is_clipped = not settings.get("predict_x_start", True)
    compat = UNCLIPPED if noise.objective == "v" and not is_clipped else COMPAT
    if steps is None or steps >= noise.timesteps:
        return PriorOptions(sampler="ancestral", compat=compat)
    return PriorOptions(sampler="ddim", steps=steps, compat=compat)


def _on_sphere(settings):
    """The places where vectors are brought to the length of CLIP's; with predict_x_start=False the
    package does so with noise alone.
    """
    asked = tuple(name for name, theirs in _SPHERE.items() if settings.get(theirs))
    if settings.get("predict_x_start", True):
        return asked
    return tuple(name for name in asked if name == "init")


def _objective(settings):
    if settings.get("predict_v", False):
        return "v"
    return "x_start" if settings.get("predict_x_start", True) else "noise"


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run's averaged weights as the state dict of a `DiffusionPrior`, with its CLIP where
    that is x-clip's.

    Raises:
      UserError: a diffusion or a network that the package has no place for.
    """
    model, params = exported(contents)
    state = convert.to_state(model, params)
    clips.tell_untold(untold_fields(model, state))
    torch_io.write(path, state | clips.ssl_within(contents, state))


def untold_fields(model: PriorAndClip, state: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The fields that a reader of an exported prior has to be given, of its network and its CLIP.

    Args:
      place: how the names of the prior begin in the state dict.
    """
    network = engine.part(state, f"{place}{dalle2_prior.NET}")
    return {
        **untold.fields(diffusion_prior.NETWORK, model.network, network),
        **clips.untold_within(state, model.clip, place),
    }


def exported(contents: Any) -> tuple[PriorAndClip, dict[str, Any]]:
    """The networks of a run as the package has them together, and their parameters.

    Raises:
      UserError: a diffusion that the package does not have.
    """
    task = contents.recipe.task
    if not isinstance(task.noise, DiscreteDdpm):
        raise UserError(
            f"task.noise={type(task.noise).__name__}(...) of the run is none of dalle2-pytorch's; "
            "train with DiscreteDdpm(...)."
        )
    params = {"network": jax.device_get(contents.averaged["prior"])}
    clip = None
    if "clip" in contents.parts and (found := clips.within(contents.parts["clip"])):
        clip, params["clip"] = found
    return PriorAndClip(task.network, task.noise, clip), params
