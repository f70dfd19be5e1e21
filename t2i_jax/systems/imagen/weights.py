"""Cascades of imagen-pytorch: `Imagen` and `ElucidatedImagen`, and the checkpoints of
`ImagenTrainer`.
"""

from __future__ import annotations

import inspect
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import values
from t2i_jax.convert import arguments, to_state, torch_io
from t2i_jax.convert import imagen as tables
from t2i_jax.convert import unet as unet_tables
from t2i_jax.convert.imagen import TrainerWeights
from t2i_jax.errors import UserError, first_line
from t2i_jax.models.cascade import Cascade
from t2i_jax.models.unet import NullUnet
from t2i_jax.systems.cascade.stage import group
from t2i_jax.systems.imagen.classes import ElucidatedImagen, Imagen
from t2i_jax.systems.imagen.options import ImagenOptions
from t2i_jax.systems.imagen.task import ImagenTask
from t2i_jax.systems.imported import LONGEST_TEXT, Imported, TorchFile
from t2i_jax.systems.notices import tell

_SEEN = ("imagen_type", "text_embed_dim", "text_encoder_name")  # elsewhere than in the task


def from_torch(file: TorchFile) -> Imported | None:
    """The cascade of a file, with its EMA weights where the trainer saved it.

    None where it holds another network.

    Raises:
      UserError: no image sizes, an unknown argument, or a T5 of another width.
    """
    if hasattr(file.source, "ema_unets"):
        raise UserError(
            "weights are a live ImagenTrainer; give the file that its save() writes, or its imagen."
        )
    loaded = file.loaded
    if (
        isinstance(loaded, Mapping)
        and isinstance(loaded.get("model"), Mapping)
        and "steps" in loaded
    ):
        weights = tables.from_trainer(loaded, **file.fields)
    elif isinstance(file.network, Cascade):  # without its trainer: every stage counts as trained
        steps, settings = (1,) * len(file.network.unets), file.told.get("settings", {})
        weights = TrainerWeights(file.network, file.params, None, steps, settings)
    else:
        return None
    given = file.options("imagen")
    _check_given(given)
    file.check_t5_name("imagen.text_encoder_name", given.get("text_encoder_name"))
    task = _task(weights, file, {**weights.settings, **given})
    of = weights.params if weights.averages is None else weights.averages
    params = {name: {"unet": tree} for name, tree in of.items() if name in task.ema_groups}
    counts = {
        group(i): np.int32(count) for i, count in enumerate(weights.steps, 1) if group(i) in params
    }
    # Guidance needs captions that were dropped in training, and the package refuses it else.
    options = ImagenOptions(guidance=3.0 if task.cond_drop_prob else 1.0, parallel=0.0)
    return Imported("Imagen", task, params, {"updates": counts}, task.image_size, options=options)


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run's cascade as a checkpoint of ImagenTrainer (.pt), or its EMA networks alone
    (.safetensors); a line on stderr says what of it the package does not load.

    Raises:
      UserError: a jointly trained text encoder, which the package has no place for.
    """
    task = contents.recipe.task
    if task.text is not None and task.text.trainable:
        raise UserError(
            "run has its own text encoder, and imagen-pytorch no place for it; train on T5."
        )
    model = Cascade(task.networks)
    _tell_unlike(task.networks)
    if path.suffix.lower() == torch_io.SAFE:
        torch_io.write(path, to_state(model, _weights(model, contents.averaged)))
        return
    counts = tuple(
        int(contents.stats["updates"].get(group(i), 0)) for i in range(1, len(model.unets) + 1)
    )
    averages = _weights(model, contents.ema) if contents.ema else None
    weights = TrainerWeights(model, _weights(model, contents.params), averages, counts, {})
    torch_io.write_checkpoint(path, tables.to_trainer(weights))


def _tell_unlike(networks):
    """Says of networks that no Unet of the package has their weights."""
    for i, unet in enumerate(networks):
        reasons = [] if isinstance(unet, NullUnet) else unet_tables.unlike(unet)
        if reasons:
            tell(
                f"imagen-pytorch can't load the weights of stages[{i}].unet, and ImagenTrainer "
                f"leaves what does not fit as random as it was: {'; '.join(reasons)}"
            )


def _weights(model, groups):
    return {group(i): _unet(unet, groups.get(group(i))) for i, unet in enumerate(model.unets, 1)}


def _unet(unet, params):
    if isinstance(unet, NullUnet):
        return {"dummy_parameter": np.zeros((1,), np.float32)}
    return jax.device_get(params["unet"])


def _check_given(given):
    """Refuses what was given of another type than the package's classes take."""
    kinds = {"elucidated": bool, "imagen_type": str}
    for make in (Imagen, ElucidatedImagen):
        kinds |= typing.get_type_hints(make, include_extras=True)
    arguments.check_kinds("imagen", kinds, given)
    if "elucidated" in given and "imagen_type" in given:
        raise UserError("imagen.elucidated and imagen.imagen_type say the same; leave one out.")


def _task(weights, file: TorchFile, settings) -> ImagenTask:
    tables.check({"imagen_type": settings.get("imagen_type")})
    elucidated = settings.pop("elucidated", settings.get("imagen_type") == "elucidated")
    settings["imagen_type"] = "elucidated" if elucidated else "original"
    if "unets" in settings:
        raise UserError("imagen.unets is not for a file, which holds them; leave it out.")
    tables.check(settings)
    make = ElucidatedImagen if elucidated else Imagen
    known = inspect.signature(make).parameters
    fields = {name: settings[name] for name in settings if name in known and name not in _SEEN}
    if "image_sizes" not in fields:
        raise UserError(
            "the weights do not tell image_sizes; give imagen={'image_sizes': (64, 256)}, one per "
            "U-Net."
        )
    last = weights.model.unets[-1]
    of_weights = {"condition_on_text": last.cond_on_text, "channels": last.channels}
    if last.cond_on_text:
        of_weights["text_embed_dim"] = last.text_embed_dim
    for name, value in of_weights.items():
        if settings.get(name) not in (None, value):
            raise UserError(
                f"imagen.{name}={values.shown(settings[name])} contradicts the weights "
                f"({value!r}); leave it out."
            )
    of_weights.pop("text_embed_dim", None)
    text = None
    if last.cond_on_text:
        name = settings.get("text_encoder_name")
        lengths = [one.max_text_len for one in weights.model.unets if not isinstance(one, NullUnet)]
        # Encoded whole, and cut by each U-Net to its own, as in the package.
        text = file.text(last.text_embed_dim, max(LONGEST_TEXT, *lengths), name)
    try:
        return make(weights.model.unets, text=text, **{**fields, **of_weights})
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        told = ", ".join(f"{name}={values.shown(value)}" for name, value in fields.items())
        raise UserError(
            f"imagen has values that make no cascade ({first_line(error)}): {told}."
        ) from error
