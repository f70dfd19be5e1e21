"""Whole decoders of dalle2-pytorch 1.15.6: the weights of `Decoder`, with its CLIP, and its
trainer's checkpoints.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.convert import (
    arguments,
    decoder_unet,
    decoder_unet_fields,
    engine,
    imagen,
    torch_io,
    x_clip,
)
from t2i_jax.convert.engine import Network, Row, State, Unused
from t2i_jax.errors import UserError
from t2i_jax.models.decoder_cascade import DecoderUnets, buffers, noise_of
from t2i_jax.pixels import SIGNED

VERSION = "1.15.6"  # of the package whose checkpoints are written
_CLIP = x_clip.WITHIN
_SAME_SINCE = (1, 10, 0)  # releases from this one on compute the same under the same names


@dataclasses.dataclass(frozen=True)
class DecoderCheckpoint:
    """The content of a checkpoint of `DecoderTrainer`, without its optimisers.

    Attributes:
      model: the networks. params: their parameters by stage, and "clip". averages: EMA of the
        stages; None: not kept.
      steps: updates of each stage. settings: arguments of the package's class; {} where nothing
        tells them.
    """

    model: DecoderUnets
    params: Mapping[str, Any]
    averages: Mapping[str, Any] | None
    steps: tuple[int, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def from_trainer(loaded: Mapping[str, Any], **fields: Any) -> DecoderCheckpoint:
    """The weights of what `DecoderTrainer.save` wrote.

    Args:
      fields: fields of the networks that weights do not determine.

    Raises:
      UserError: a checkpoint of a release that computes otherwise, or weights that do not fit.
    """
    from t2i_jax.convert import weights

    check_version(loaded.get("version"))
    read = weights(loaded["model"], fields)
    averages = None
    if "ema" in loaded:
        state = torch_io.arrays(imagen.ema_models(loaded["ema"]))
        own = dataclasses.replace(read.model, noises=(), clip=None)
        averages = engine.to_ours(NETWORK.table(own), state, NETWORK.shapes(own))
    steps = imagen.steps_of(loaded.get("steps", [1] * len(read.model.unets)), read.model.unets)
    return DecoderCheckpoint(read.model, read.params, averages, steps)


def to_trainer(checkpoint: DecoderCheckpoint) -> dict[str, Any]:
    """The checkpoint that `torch.save` writes for `DecoderTrainer.load(..., only_model=True)`; its
    optimisers start anew.

    Where no averages were kept, the weights themselves stand in their place.
    """
    model = checkpoint.model
    table, shapes = NETWORK.table(model), NETWORK.shapes(model)
    state = torch_io.tensors(engine.to_torch(table, checkpoint.params, shapes))
    own = dataclasses.replace(model, noises=(), clip=None)
    stages = {name: checkpoint.params[name] for name in NETWORK.shapes(own)}
    averages = stages if checkpoint.averages is None else checkpoint.averages
    averaged = engine.to_torch(NETWORK.table(own), averages, NETWORK.shapes(own))
    ema = imagen.ema_lists(checkpoint.steps, state, torch_io.tensors(averaged))
    steps = torch_io.tensors({"steps": np.asarray(checkpoint.steps)})
    return {"model": state, "version": VERSION, **steps, "ema": ema}


def check_version(version: Any) -> None:
    """Refuses a checkpoint of a release whose networks compute otherwise under the same names.

    Raises:
      UserError: the release.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if found is not None and tuple(map(int, found.groups())) < _SAME_SINCE:
        raise UserError(
            f"the checkpoint is of dalle2-pytorch {version}, and before 1.10.0 its U-Net was "
            "another one, before 1.4.3 with another attention under the same names; convert with "
            "that release, or train anew."
        )


def live(module: Any) -> dict[str, Any]:
    """The settings of a live decoder: {"unets": fields of each, "clip": fields, "settings"}.

    Raises:
      UserError: an argument that has no form here.
    """
    settings = arguments.readable(_ARGUMENTS, module)
    blurs = [one for one in module.lowres_conds if one is not None]
    if blurs:
        settings |= {
            "lowres_downsample_first": blurs[0].downsample_first,
            **{name: getattr(blurs[0], name) for name in ("blur_prob", "blur_sigma")},
            "blur_kernel_size": blurs[0].blur_kernel_size,
            "use_blur_for_lowres_cond": tuple(one.use_blur for one in blurs),
        }
    arguments.check("Decoder", arguments.DECODER, settings)
    told: dict[str, Any] = {
        "unets": [decoder_unet_fields.live(unet) for unet in module.unets],
        "settings": settings,
    }
    if module.clip is not None:
        if type(module.clip).__name__ != "XClipAdapter":
            raise UserError(
                f"the decoder has a {type(module.clip).__name__}; give it without its clip, and "
                "that one by itself."
            )
        told["clip"] = x_clip.live(module.clip.clip)
        if not settings["auto_normalize_img"]:
            told["clip"]["pixel_range"] = SIGNED
    return told


_ARGUMENTS = {
    name: lambda module, name=name: getattr(module, name)
    for name in (
        "image_sizes", "channels", "image_cond_drop_prob", "text_cond_drop_prob",
        "random_crop_sizes", "predict_x_start", "predict_v", "sample_timesteps",
        "lowres_noise_sample_level", "learned_variance", "learned_variance_constrain_frac",
        "vb_loss_weight", "unconditional", "dynamic_thres_percentile", "use_dynamic_thres",
        "ddim_sampling_eta",
    )
} | {
    "loss_type": lambda module: module.noise_schedulers[0].loss_type,
    "auto_normalize_img": lambda module: module.normalize_img.__name__ != "identity",
    "vae": lambda module: () if not any(list(vae.parameters()) for vae in module.vaes) else "vae",
}  # fmt: skip


def _fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of a decoder: {"unets": [(class, fields), ...], "noises", "clip"}.

    Args:
      told: "unets" and "clip", fields of each; all others are for each U-Net.
    """
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("unets."))
    if any(key.startswith("vaes.") for key in state):
        raise UserError(
            "the weights hold a vae of dalle2-pytorch, which has no form here; train a stage on "
            "latents anew, with an image tokenizer."
        )
    every = {k: v for k, v in told.items() if k not in ("unets", "clip", "settings")}
    unets = []
    for i, own in enumerate(imagen.of_each(told, count)):
        part = engine.part(state, f"unets.{i}.")
        unets.append(
            (decoder_unet.NETWORK.model, decoder_unet_fields.fields(part, {**every, **own}))
        )
    found: dict[str, Any] = {"unets": unets, "noises": _noises(state, count)}
    if any(key.startswith(_CLIP) for key in state):
        found["clip"] = x_clip.adapted(engine.part(state, _CLIP), told)
    return found


def _noises(state, count):
    """The diffusion of each U-Net, as its buffers tell it."""
    return tuple(
        noise_of(*(state[f"noise_schedulers.{i}.{name}"] for name in ("betas", "p2_loss_weight")))
        for i in range(count)
        if f"noise_schedulers.{i}.betas" in state
    )


def _table(model: DecoderUnets) -> Sequence[Row]:
    rows: list[Row] = []
    for i, unet in enumerate(model.unets):
        rows += engine.within(decoder_unet.table(unet), f"unets.{i}.", f"stage_{i + 1}")
        if model.noises and unet.lowres_noise_cond:
            rows += _buffers(f"lowres_conds.{i}.noise_scheduler", noise_of_lowres())
    for i, noise in enumerate(model.noises):
        rows += _buffers(f"noise_schedulers.{i}", noise)
    if model.clip is not None:
        rows += engine.within(x_clip.table(model.clip), _CLIP, "clip")
    return rows


def noise_of_lowres() -> Any:
    """The diffusion that noises smaller images: 1000 timesteps with linear betas."""
    steps = np.linspace(1e-4, 0.02, 1000)
    return noise_of(steps, np.ones(1000))


def _buffers(torch, noise):
    return [Unused(f"{torch}.{name}", value) for name, value in buffers(noise).items()]


def _shapes(model: DecoderUnets) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"stage_{i}": decoder_unet.NETWORK.shapes(unet) for i, unet in enumerate(model.unets, 1)
    }
    if model.clip is not None:
        found["clip"] = x_clip.NETWORK.shapes(model.clip)
    return found


def _told(value: Any) -> dict[str, Any]:
    """The fields that a checkpoint stores beside its weights: none, but its release is checked."""
    if isinstance(value, Mapping):
        check_version(value.get("version"))
    return {}


NETWORK = Network(
    model=DecoderUnets,
    recognise=lambda state: "unets.0.null_image_embed" in state,
    fields=_fields,
    table=_table,
    shapes=_shapes,
    told=live,
    stored=_told,
    ignore=(f"{_CLIP}visual_ssl.",),
    upgrade=lambda state: engine.upgraded(state, _CLIP, x_clip.upgrade),
)
