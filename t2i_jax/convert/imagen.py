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

from t2i_jax import config
from t2i_jax.convert import engine, state_dict, torch_io, unet
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
      settings: `imagen_params` of a cascade that was made from a config, with "imagen_type"; {}
        else.
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
    from t2i_jax.convert import from_torch

    loaded = source if isinstance(source, Mapping) else torch_io.load(source)
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("model"), Mapping):
        raise UserError("the checkpoint has no 'model'; give a file that ImagenTrainer.save wrote.")
    model, params = from_torch(loaded["model"], **fields)
    averages = None
    if "ema" in loaded:
        state = torch_io.arrays(_ema_models(loaded["ema"]))
        table = NETWORK.table(model)
        averages = engine.to_ours(table, state, NETWORK.shapes(model))
    settings = loaded.get("imagen_params") or {}
    if not isinstance(settings, Mapping):
        raise UserError(
            f"the checkpoint has imagen_params={config.shown(settings)}, which is no mapping; save "
            "it again."
        )
    settings = {str(name): value for name, value in settings.items()}
    if settings:
        settings["imagen_type"] = loaded.get("imagen_type")
    steps = _steps(loaded.get("steps", [1] * len(model.unets)), len(model.unets))
    return TrainerWeights(model, params, averages, steps, settings)


def to_trainer(weights: TrainerWeights) -> dict[str, Any]:
    """The checkpoint that `torch.save` writes for `ImagenTrainer.load`; its optimisers then start
    anew.

    Where no averages were kept, the weights themselves stand in their place.
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
    averages, ema = torch_io.tensors(engine.to_torch(table, averages, shapes)), {}
    for i, count in enumerate(weights.steps):
        ema |= torch_io.tensors({f"{i}.initted": np.asarray(True), f"{i}.step": np.asarray(count)})
        for name, source in (("online_model", state), ("ema_model", averages)):
            ema |= {
                f"{i}.{name}.{key}": value
                for key, value in engine.part(source, f"unets.{i}.").items()
            }
    saved["ema"] = ema
    if weights.settings:
        saved["imagen_params"] = {
            name: value for name, value in weights.settings.items() if name != "imagen_type"
        }
        saved["imagen_type"] = weights.settings.get("imagen_type")
    return saved


def _steps(stored, count):
    """The updates of each U-Net, as a checkpoint stores them."""
    try:
        steps = arrays.array(stored if arrays.is_array(stored) else np.asarray(stored))
        if steps.shape == (count,) and np.array_equal(steps, steps.astype(np.int32)):
            return tuple(int(step) for step in steps)
    except ValueError:
        pass
    raise UserError(
        f"the checkpoint has steps={config.shown(stored)}, which is no count for each of {count} "
        "U-Nets; save it again."
    )


def _ema_models(ema):
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


def _fields(state: State, module: Any) -> dict[str, Any]:
    """{"unets": [(class, fields), ...]}."""
    unets = []
    for i, part in enumerate(_split(state)):
        network = _network(part)
        unets.append(
            (network.model, network.fields(part, None if module is None else module.unets[i]))
        )
    return {"unets": unets}


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
)
