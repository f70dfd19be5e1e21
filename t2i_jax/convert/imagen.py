"""Whole cascades of imagen-pytorch: the weights of `Imagen` and `ElucidatedImagen`, and its
trainer's checkpoints.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax import values
from t2i_jax.convert import arguments, engine, state_dict, torch_io, unet, unet_fields
from t2i_jax.convert.engine import Constant, Entry, Network, State
from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays
from t2i_jax.models.cascade import Cascade
from t2i_jax.models.unet import NullUnet

VERSION = "2.1.0"  # of the package whose checkpoints are written


@dataclasses.dataclass(frozen=True)
class TrainerWeights:
    """The content of a checkpoint of `ImagenTrainer`, without its optimisers.

    Attributes:
      model: the networks. params: their parameters by stage. averages: their EMA; None: not kept.
      steps: updates of each stage.
      settings: arguments of the package's class but for the U-Nets, with "imagen_type" ("original"
        or "elucidated"), as a cascade that was made from a config stores them; {} else.
    """

    model: Cascade
    params: Mapping[str, Any]
    averages: Mapping[str, Any] | None
    steps: tuple[int, ...]
    settings: Mapping[str, Any]


def from_trainer(source: str | pathlib.Path | Mapping[str, Any], **fields: Any) -> TrainerWeights:
    """The weights of a trainer's checkpoint; a file is read without running pickled code.

    Args:
      source: a file that `ImagenTrainer.save` wrote, or what it holds. fields: fields of the
        networks that weights do not determine.

    Raises:
      UserError: no such checkpoint, or weights that do not fit.
    """
    from t2i_jax.convert import weights

    loaded = source if isinstance(source, Mapping) else torch_io.load(source)
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("model"), Mapping):
        raise UserError("the checkpoint has no 'model'; give a file that ImagenTrainer.save wrote.")
    read = weights(loaded["model"], fields, stored(loaded))
    model, params = read.model, read.params
    averages = None
    if "ema" in loaded:
        state = torch_io.arrays(ema_models(loaded["ema"]))
        table = NETWORK.table(model)
        averages = engine.to_ours(table, state, NETWORK.shapes(model))
    settings = read.told.get("settings", {})
    steps = steps_of(loaded.get("steps", [1] * len(model.unets)), model.unets)
    return TrainerWeights(model, params, averages, steps, settings)


def to_trainer(weights: TrainerWeights) -> dict[str, Any]:
    """The checkpoint that `torch.save` writes for `ImagenTrainer.load`; its optimisers then start
    anew.

    Where no averages were kept, the weights themselves stand in their place. It holds no config, of
    which `settings` are a part only: the trainer that loads it was made of the same classes.
    """
    table, shapes = NETWORK.table(weights.model), NETWORK.shapes(weights.model)
    state = torch_io.tensors(engine.to_torch(table, weights.params, shapes))
    saved = {
        "model": state,
        "version": VERSION,
        **torch_io.tensors({"steps": np.asarray(weights.steps)}),
    }
    # A trainer as it is by default refuses a checkpoint without averages.
    averages = weights.params if weights.averages is None else weights.averages
    averages = torch_io.tensors(engine.to_torch(table, averages, shapes))
    saved["ema"] = ema_lists(weights.steps, state, averages)
    return saved


def stored(loaded: Any) -> dict[str, Any]:
    """The settings in the config of a checkpoint: {"unets": fields of each, "settings"}; {} without
    one.

    Raises:
      UserError: no such config, or one with arguments that have no form here.
    """
    params = loaded.get("imagen_params") if isinstance(loaded, Mapping) else None
    if not params:
        return {}
    unets = params.get("unets") if isinstance(params, Mapping) else None
    if not isinstance(unets, (list, tuple)) or not all(isinstance(u, Mapping) for u in unets):
        raise UserError(
            f"the checkpoint has imagen_params={values.shown(params)}, which is no configuration "
            "with unets; save it again."
        )
    settings = {str(name): value for name, value in params.items() if name != "unets"}
    settings["imagen_type"] = loaded.get("imagen_type")
    check(settings)
    channels = settings.get("channels", 3)
    within = {"channels": channels, "channels_out": channels}
    return {
        "unets": [{} if u.get("is_null") else unet_fields.configured(u, within) for u in unets],
        "settings": settings,
    }


def check(settings: Mapping[str, Any]) -> None:
    """Refuses arguments of `Imagen` or `ElucidatedImagen` that have no form here."""
    elucidated = settings.get("imagen_type") == "elucidated"
    rows = arguments.ELUCIDATED_IMAGEN if elucidated else arguments.IMAGEN
    name = "ElucidatedImagen" if elucidated else "Imagen"
    arguments.check(name, {**rows, **arguments.IN_A_CONFIG}, settings)


def live(module: Any) -> dict[str, Any]:
    """The settings of a live cascade: {"unets": fields of each, "settings"}.

    Raises:
      UserError: an argument that has no form here.
    """
    elucidated = hasattr(module, "hparams")
    settings = arguments.readable(_ELUCIDATED if elucidated else _ORIGINAL, module)
    if elucidated:
        names = module.hparams[0]._fields
        settings |= {name: tuple(getattr(h, name) for h in module.hparams) for name in names}
    settings["imagen_type"] = "elucidated" if elucidated else "original"
    check(settings)
    null = ("NullUnet",)
    return {
        "unets": [{} if type(u).__name__ in null else unet_fields.live(u) for u in module.unets],
        "settings": settings,
    }


def _schedule(schedule):
    """The name of a noise schedule, whose function is called alpha_cosine_log_snr or
    beta_linear_log_snr.
    """
    function = schedule.log_snr
    name = getattr(function, "name", None) or function.__name__  # a compiled one has the first
    return next((known for known in ("cosine", "linear") if known in name), name)


_BOTH = {
    name: lambda module, name=name: getattr(module, name)
    for name in (
        "image_sizes", "text_encoder_name", "text_embed_dim", "channels", "cond_drop_prob",
        "random_crop_sizes", "lowres_sample_noise_level", "per_sample_random_aug_noise_level",
        "condition_on_text", "dynamic_thresholding", "dynamic_thresholding_percentile",
        "only_train_unet_number", "temporal_downsample_factor", "resize_cond_video_frames",
    )
} | {
    "video": lambda module: module.is_video,
    "lowres_noise_schedule": lambda module: _schedule(module.lowres_noise_schedule),
    "resize_mode": lambda module: module.resize_to.keywords["mode"],
}  # fmt: skip
_ELUCIDATED = _BOTH
_ORIGINAL = _BOTH | {
    "timesteps": lambda module: tuple(s.num_timesteps for s in module.noise_schedulers),
    "noise_schedules": lambda module: tuple(map(_schedule, module.noise_schedulers)),
    "loss_type": lambda module: module.loss_type,
    "pred_objectives": lambda module: module.pred_objectives,
    "min_snr_loss_weight": lambda module: tuple(g is not None for g in module.min_snr_gamma),
    "min_snr_gamma": lambda module: tuple(5 if g is None else g for g in module.min_snr_gamma),
}


def steps_of(stored: Any, unets: Sequence[Any]) -> tuple[int, ...]:
    """The updates of each U-Net, as a checkpoint stores them.

    Raises:
      UserError: no whole number for each.
    """
    count = len(unets)
    try:
        steps = arrays.array(stored if arrays.is_array(stored) else np.asarray(stored))
        if steps.shape == (count,) and np.array_equal(steps, steps.astype(np.int32)):
            return tuple(int(step) for step in steps)
    except ValueError:
        pass
    raise UserError(
        f"the checkpoint has steps={values.shown(stored)}, which is no count for each of {count} "
        "U-Nets; save it again."
    )


def ema_lists(
    steps: Sequence[int], online: Mapping[str, Any], averages: Mapping[str, Any]
) -> dict[str, Any]:
    """The state dict of the package's list of averages, from those of a cascade and of its
    averages.
    """
    ema: dict[str, Any] = {}
    for i, count in enumerate(steps):
        ema |= torch_io.tensors({f"{i}.initted": np.asarray(True), f"{i}.step": np.asarray(count)})
        for name, source in (("online_model", online), ("ema_model", averages)):
            ema |= {
                f"{i}.{name}.{key}": value
                for key, value in engine.part(source, f"unets.{i}.").items()
            }
    return ema


def ema_models(ema: Any) -> dict[str, Any]:
    """The state dict of the averaged networks from that of the package's list of averages."""
    found, state = {}, state_dict.flat(ema)
    for key, was in state_dict.unwrapped(state).items():
        match = re.fullmatch(r"(\d+)\.ema_model\.(.+)", key)
        if match:
            found[f"unets.{match[1]}.{match[2]}"] = state[was]
    return found


def _split(state: State) -> list[dict[str, np.ndarray]]:
    """The state dicts of the U-Nets in order."""
    count = 1 + max(int(key.split(".")[1]) for key in state)
    return [engine.part(state, f"unets.{i}.") for i in range(count)]


def _network(of: Any) -> Network:
    is_null = isinstance(of, NullUnet) or (isinstance(of, Mapping) and unet.NULL.recognise(of))
    return unet.NULL if is_null else unet.NETWORK


def _fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of a cascade: {"unets": [(class, fields), ...]}.

    Args:
      told: "unets", fields of each; all others are for each of them.

    Raises:
      UserError: a U-Net of videos.
    """
    parts, every = _split(state), {k: v for k, v in told.items() if k not in ("unets", "settings")}
    each, unets = of_each(told, len(parts)), []
    for i, (part, own) in enumerate(zip(parts, each, strict=True)):
        last = part.get("final_conv.weight")
        if last is not None and last.ndim == 5:  # time is an axis of its kernels
            raise UserError(
                f"unets.{i} is a U-Net of videos (Unet3D), which has no form here; give a cascade "
                "of images."
            )
        network = _network(part)
        unets.append((network.model, network.fields(part, {**every, **own})))
    return {"unets": unets}


def of_each(given: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """The fields that "unets" gives for each of `count` U-Nets.

    Raises:
      UserError: no list of as many mappings.
    """
    each = given.get("unets", [{}] * count)
    if not isinstance(each, (list, tuple)) or not all(isinstance(own, Mapping) for own in each):
        raise UserError(
            f"unets={values.shown(each)} is no list of mappings; give [{{...}}, {{...}}]."
        )
    if len(each) != count:
        raise UserError(
            f"unets has {len(each)} entries for {count} U-Nets; give one for each, {{}} where none."
        )
    return list(each)


def _table(model: Cascade) -> Sequence[Entry | Constant]:
    entries = []
    for i, part in enumerate(model.unets):
        entries += engine.within(_network(part).table(part), f"unets.{i}.", f"stage_{i + 1}")
    return entries


NETWORK = Network(
    model=Cascade,
    recognise=lambda state: any(key.startswith("unets.0.") for key in state),
    fields=_fields,
    table=_table,
    shapes=lambda model: {
        f"stage_{i}": _network(part).shapes(part) for i, part in enumerate(model.unets, 1)
    },
    told=live,
    stored=stored,
)
