"""Decoders of dalle2-pytorch: `Decoder`, and the checkpoints of `DecoderTrainer`."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import values
from t2i_jax.convert import (
    Weights,
    arguments,
    decoder_unet,
    engine,
    to_state,
    torch_io,
    untold,
)
from t2i_jax.convert import dalle2_decoder as tables
from t2i_jax.convert.dalle2_decoder import DecoderCheckpoint
from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.errors import UserError, first_line
from t2i_jax.models.decoder_cascade import DecoderUnets
from t2i_jax.pixels import SIGNED
from t2i_jax.systems.cascade.stage import group
from t2i_jax.systems.clip import weights as clips
from t2i_jax.systems.decoder.classes import Decoder
from t2i_jax.systems.decoder.options import DecoderOptions
from t2i_jax.systems.decoder.stage import COMPAT
from t2i_jax.systems.decoder.task import DecoderTask
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.text.stored import StoredText

# The package's sampling options.
OPTIONS = DecoderOptions(guidance=1.0, compat=COMPAT)


def from_torch(file: TorchFile) -> Imported | None:
    """The decoder of a file, with its EMA weights where the trainer saved it, and its CLIP.

    None where it holds another network.

    Raises:
      UserError: no image sizes, an unknown argument, or weights of a release that computes
        otherwise.
    """
    if type(file.source).__name__ == "DecoderTrainer":
        raise UserError(
            "weights are a live DecoderTrainer; give the file that its save() writes, or its "
            "decoder."
        )
    if not isinstance(file.network, DecoderUnets):
        return None
    loaded = file.loaded
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        found = tables.from_trainer(loaded, **file.fields)
    else:  # without its trainer: every stage counts as trained
        steps, told = (1,) * len(file.network.unets), file.told.get("settings", {})
        found = DecoderCheckpoint(file.network, file.params, None, steps, told)
    settings = {**found.settings, **file.options("decoder")}
    found = dataclasses.replace(found, model=as_shown(found.model, settings))
    read = Weights(found.model, dict(found.params), file.told, file.beside)
    return imported(found, settings, clips.within_file(file, read))


def as_shown(model: DecoderUnets, settings: Mapping[str, Any]) -> DecoderUnets:
    """The networks with a CLIP that sees pixels from -1 to 1 where the package's class was made
    with `auto_normalize_img=False`: it gives CLIP the images as they come.
    """
    if model.clip is None or settings.get("auto_normalize_img", True):
        return model
    return dataclasses.replace(model, clip=dataclasses.replace(model.clip, pixel_range=SIGNED))


def imported(
    found: DecoderCheckpoint, settings: Mapping[str, Any], clip: Imported | None
) -> Imported:
    """A decoder from its networks and their weights.

    Args:
      settings: arguments of the package's class. clip: that of the decoder; None: it has none.

    Raises:
      UserError: no image sizes, or arguments that are not known or do not fit the weights.
    """
    task = _task(found.model, dict(settings))
    of = found.params if found.averages is None else found.averages
    params = {name: {"unet": of[name]} for name in task.ema_groups}
    counts = {group(i): np.int32(count) for i, count in enumerate(found.steps, 1)}
    parts = {} if clip is None else {"clip": clip}
    stats = {"updates": counts}
    return Imported("Decoder", task, params, stats, task.image_size, parts, OPTIONS)


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run's decoder as a checkpoint of DecoderTrainer (.pt), or its EMA networks alone
    (.safetensors), with its CLIP.

    Raises:
      UserError: a decoder that the package has no place for.
    """
    model, averaged = exported(contents)
    state = to_state(model, averaged)
    clips.tell_untold(untold_fields(model, state))
    more = clips.ssl_within(contents, state)
    if path.suffix.lower() == torch_io.SAFE:
        torch_io.write(path, state | more)
        return
    names = contents.recipe.task.ema_groups
    beside = {name: own for name, own in averaged.items() if name == "clip"}
    counts = tuple(int(contents.stats["updates"].get(name, 0)) for name in names)
    averages = _unets(names, contents.ema) if contents.ema else None
    checkpoint = DecoderCheckpoint(
        model, {**_unets(names, contents.params), **beside}, averages, counts
    )
    made = tables.to_trainer(checkpoint)
    made["model"] |= torch_io.tensors(more)
    torch_io.write_checkpoint(path, made)


def untold_fields(model: DecoderUnets, state: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The fields that a reader of an exported decoder has to be given: those of each U-Net, and of
    its CLIP.

    Args:
      place: how the names of the decoder begin in the state dict.
    """
    each = [
        untold.fields(decoder_unet.NETWORK, unet, engine.part(state, f"{place}unets.{i}."))
        for i, unet in enumerate(model.unets)
    ]
    return {
        **({"unets": each} if any(each) else {}),
        **clips.untold_within(state, model.clip, place),
    }


def exported(contents: Any) -> tuple[DecoderUnets, dict[str, Any]]:
    """The networks of a run as the package has them together, and their averaged parameters.

    Raises:
      UserError: a decoder that the package has no place for.
    """
    task, clip, beside = contents.recipe.task, None, {}
    if any(map(task.learns_text, range(1, len(task.stages) + 1))):
        raise UserError(
            "run has its own text encoder, and dalle2-pytorch no place for it; train with "
            "text=None, the captions of CLIP."
        )
    if "clip" in contents.parts and (found := clips.within(contents.parts["clip"])):
        clip, beside["clip"] = found
    model = DecoderUnets(task.networks, _noises(task), clip)
    return model, {**_unets(task.ema_groups, contents.averaged), **beside}


def _unets(names, groups):
    return {name: jax.device_get(groups[name]["unet"]) for name in names}


def _noises(task):
    """The diffusion of each stage, as the package has them."""
    for i, stage in enumerate(task.stages):
        if not isinstance(stage.noise, DiscreteDdpm):
            raise UserError(
                f"stages[{i}].noise is a {type(stage.noise).__name__}, and dalle2-pytorch has "
                "whole timesteps; train with DiscreteDdpm()."
            )
        if stage.latent:
            raise UserError(
                f"stages[{i}] works on latents of a tokenizer that dalle2-pytorch does not have; "
                "train on pixels."
            )
    return tuple(stage.noise for stage in task.stages)


def _task(model: DecoderUnets, settings: dict[str, Any]) -> DecoderTask:
    arguments.check("decoder", {**arguments.DECODER, "cond_drop_prob": "read"}, settings)
    for name in ("unet", "clip", "vae"):
        settings.pop(name, None)
    if "image_sizes" not in settings and "image_size" not in settings:
        raise UserError(
            "the weights do not tell image_sizes; give decoder={'image_sizes': (64, 256)}, one per "
            "U-Net."
        )
    known = typing.get_type_hints(Decoder)
    arguments.check_kinds("decoder", known | {"auto_normalize_img": bool}, settings)
    fields = {name: value for name, value in settings.items() if name in known}
    _of_weights(model, fields)
    first, text = model.unets[0], None
    reads = [unet for unet in model.unets if unet.cond_on_text_encodings]
    if model.clip is None and reads:
        length = max(unet.max_text_len for unet in reads)  # each U-Net cuts it to its own
        text = StoredText(reads[0].text_embed_dim or 1, length)
    width = first.image_embed_dim if model.clip is None else None
    try:
        return Decoder(
            model.unets, clip=model.clip, text=text, image_embed_dim=width, compat=COMPAT, **fields
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        told = ", ".join(f"{name}={values.shown(value)}" for name, value in fields.items())
        raise UserError(
            f"decoder has values that make none ({first_line(error)}): {told}."
        ) from error


def _of_weights(model, fields):
    """Adds the arguments that the weights tell.

    Raises:
      UserError: one that contradicts them.
    """
    unets = model.unets
    found: dict[str, Any] = {
        "channels": unets[0].channels,
        "learned_variance": tuple(u.channels_out == 2 * u.channels for u in unets),
        "use_noise_for_lowres_cond": tuple(u.lowres_noise_cond for u in unets),
        "unconditional": not any(u.cond_on_image_embeds or u.cond_on_text_encodings for u in unets),
    }
    if model.noises:
        found |= {
            "timesteps": model.noises[0].timesteps,
            "beta_schedule": tuple(noise.schedule for noise in model.noises),
            "p2_loss_weight_gamma": tuple(noise.p2_gamma for noise in model.noises),
        }
        if ks := [noise.p2_k for noise in model.noises if noise.p2_gamma]:
            found["p2_loss_weight_k"] = ks[0]  # one for all there
    for name in ("channels", "timesteps", "unconditional"):
        if name in found and fields.get(name, found[name]) != found[name]:
            raise UserError(
                f"decoder.{name}={values.shown(fields[name])} contradicts the weights "
                f"({found[name]!r}); leave it out."
            )
    fields |= found
