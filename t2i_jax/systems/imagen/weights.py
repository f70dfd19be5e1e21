"""Cascades of imagen-pytorch as folders that `load` reads, and runs of cascades as checkpoints of its trainer."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import config, runs
from t2i_jax.convert import imagen as tables
from t2i_jax.convert import to_state, torch_io
from t2i_jax.convert.imagen import TrainerWeights, from_trainer
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.errors import UserError
from t2i_jax.models.cascade import Cascade
from t2i_jax.models.unet import NullUnet
from t2i_jax.runs.recipe import Recipe
from t2i_jax.systems.imagen.classes import ElucidatedImagen, Imagen
from t2i_jax.systems.imagen.task import ImagenTask, group
from t2i_jax.text.stored import StoredText
from t2i_jax.text.t5 import T5Text
from t2i_jax.train.checkpoint import load_params
from t2i_jax.train.loop import TrainConfig

__all__ = ["export", "from_trainer", "is_trainers", "untold", "write"]

_NO_USE = ("unets", "imagen_type", "video", "text_embed_dim", "auto_normalize_img", "temporal_downsample_factor")


def is_trainers(loaded: Any) -> bool:
    """Whether a file's contents are what ImagenTrainer saves."""
    return isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping) and "steps" in loaded


def untold(model: Cascade, params: Mapping[str, Any]) -> TrainerWeights:
    """Weights that were saved without their trainer: every stage counts as trained."""
    return TrainerWeights(model, params, None, (1,) * len(model.unets), {})


def write(weights: TrainerWeights, out: pathlib.Path, t5: str | None, given: Mapping[str, Any]) -> pathlib.Path:
    """Writes the folder of a cascade, with the averages where there are some, and returns it.

    Args:
      t5: folder or hub name of its T5; None: it is given embeddings. given: arguments of the package's class.

    Raises:
      UserError: no image sizes, an unknown argument, or a T5 of another width.
    """
    task = _task(weights, t5, {**weights.settings, **given})
    of = weights.params if weights.averages is None else weights.averages
    params = {name: {"unet": tree} for name, tree in of.items() if name in task.ema_groups}
    counts = {group(i): np.int32(count) for i, count in enumerate(weights.steps, 1) if group(i) in params}
    recipe = Recipe(task, DataConfig(image_size=task.image_size), TrainConfig(steps=1, batch_size=1))
    runs.write_system(out, recipe, params, {"updates": counts}, {})
    return out


def export(run: str | pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Writes a run's cascade as a checkpoint of ImagenTrainer (.pt), or its averaged networks alone (.safetensors).

    Raises:
      UserError: a text encoder that was trained along, which the package has no place for.
    """
    run = pathlib.Path(run)
    if (run / "system.json").is_file():
        recipe, params, stats = runs.read(run)
        ema = {}
    else:
        settings, params, ema, stats = load_params(run)
        recipe = runs.recipe_from_dict(settings)
    if recipe.task.text is not None and recipe.task.text.trainable:
        raise UserError(f"run={str(run)!r} has its own text encoder, and imagen-pytorch no place for it; train on T5.")
    model = Cascade(recipe.task.networks)
    of = lambda groups: {f"stage_{i}": _weights(groups, unet, i) for i, unet in enumerate(model.unets, 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    half_done = path.with_name(f"partial-{path.name}")
    if path.suffix == ".safetensors":
        torch_io.write(half_done, to_state(model, of({**params, **ema})))
    else:
        counts = tuple(int(stats["updates"].get(group(i), 0)) for i in range(1, len(model.unets) + 1))
        averages = of(ema) if ema else None
        torch_io.write_checkpoint(half_done, tables.to_trainer(TrainerWeights(model, of(params), averages, counts, {})))
    half_done.replace(path)
    return path


def _weights(groups, unet, number):
    if isinstance(unet, NullUnet):
        return {"dummy_parameter": np.zeros((1,), np.float32)}
    return jax.device_get(groups[group(number)]["unet"])


def _task(weights, t5, settings) -> ImagenTask:
    elucidated = settings.pop("elucidated", settings.get("imagen_type") == "elucidated")
    make = ElucidatedImagen if elucidated else Imagen
    known = inspect.signature(make).parameters
    fields = {name: value for name, value in settings.items() if name not in _NO_USE}
    for name in fields:
        if name not in known:
            raise UserError(f"imagen has {name!r}, no argument of {make.__name__}; {config.did_you_mean(name, known)}")
    if "image_sizes" not in fields:
        raise UserError("the weights do not tell image_sizes; give imagen={'image_sizes': (64, 256)}, one per U-Net.")
    last = weights.model.unets[-1]
    fields.pop("text_encoder_name", None)
    fields["condition_on_text"] = last.cond_on_text
    text = None
    if last.cond_on_text:
        width, length = last.text_embed_dim, last.max_text_len
        text = StoredText(width, length) if t5 is None else T5Text.from_directory(t5, length)
        if text.dim != width:
            raise UserError(f"t5={t5!r} is {text.dim} wide and the weights want {width}; give their own T5.")
    return make(weights.model.unets, text=text, **{"channels": last.channels, **fields})
