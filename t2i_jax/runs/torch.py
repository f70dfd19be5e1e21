"""Weights of the PyTorch packages as a folder that `load` reads, and a run's weights as PyTorch
loads them.

Which package and how is for the systems to say: a module of `t2i_jax.systems.weights()` offers

- `from_torch(file) -> Imported | None`: the system of a file, None where it holds none of it;
- `to_torch(contents, path)`: writes a run's contents as a file for the package.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax import paths, systems
from t2i_jax.cluster import lock
from t2i_jax.convert import flax_io, torch_io
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.errors import UserError
from t2i_jax.eval.evaluation import Evaluation
from t2i_jax.files import replacing
from t2i_jax.foreign import torch_file
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe, recipe_from_dict, recipe_to_dict
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.train.config import TrainConfig


def import_torch(
    source: Any, out: str | pathlib.Path, /, *, t5: str | None = None, **fields: Any
) -> pathlib.Path:
    """Writes a system of a PyTorch package as a folder that `t2i_jax.load` reads.

    Returns the folder.

    Args:
      source: a live module, of which all settings are read, or the path of a .safetensors, .pt,
        .pth, .bin, .ckpt or .msgpack file with the weights of a whole system as its package saves
        them, or what the package's trainer saved; a pickle never runs code.
      out: new folder.
      t5: the folder or hub name of the T5 on whose embeddings the system was trained; None:
        `generate` is given embeddings instead of prompts.
      **fields: configuration that the weights do not tell; a mapping under the name of a system is
        arguments of the package's class, as {"image_sizes": (64, 256)}.

    Raises:
      UserError: weights of another kind, fields that contradict them, a T5 of another width, or
        `out` exists.
    """
    live = hasattr(source, "state_dict")
    source, out = source if live else paths.given("weights", source), paths.new_folder("out", out)
    own = {
        name: fields.pop(name) for name in systems.SYSTEMS if isinstance(fields.get(name), Mapping)
    }
    file = TorchFile(source, t5, fields, own)
    for weights in systems.weights():
        found = weights.from_torch(file)
        if found is not None:
            if file.unused:
                name, given = next(iter(file.unused.items()))
                raise UserError(
                    f"{name}={given} is given for the weights of a {found.kind}; leave it out."
                )
            _write(found, out)
            return out
    if file.unknown is not None:
        raise file.unknown
    raise UserError(
        f"weights={file.path!r} hold a {type(file.network).__name__}, no system; give those of a "
        "whole system."
    )


def export_torch(run: str | pathlib.Path, path: str | pathlib.Path) -> pathlib.Path:
    """Writes a run's weights as the PyTorch package of its system loads them, and returns the file.

    Args:
      run: folder of a run, or of an exported system. path: new .safetensors or .pt file, or
        .msgpack where the package is one of Flax.

    Raises:
      UserError: a network that has no PyTorch form, or `path` exists.
    """
    path = paths.new("out", path)
    _check_free(path)
    if path.suffix.lower() not in (torch_io.SAFE, *torch_file.ENDINGS, flax_io.ENDING):
        raise UserError(
            f"out={paths.shown(path)} does not end in {torch_io.SAFE}, .pt or {flax_io.ENDING}, "
            "by which the kind of file is chosen; give it such an ending."
        )
    weights = systems.weights_of(folders.load_run_recipe(run).task)
    contents = folders.read(run)
    with lock.writing("out", path):
        _check_free(path)  # another command may have written it while this one read
        with replacing(path) as temporary:
            weights.to_torch(contents, temporary)
    return path


def _check_free(path):
    if path.exists() or path.is_symlink():
        raise UserError(f"out={paths.shown(path)} exists; name a new file.")


def _write(found: Imported, out):
    beside: dict[str, Any] = {
        name: functools.partial(_write, part) for name, part in found.parts.items()
    }
    if found.vocabulary is not None:
        beside[folders.TEXT_TOKENIZER] = found.vocabulary.save
    recipe = Recipe(
        found.task,
        DataConfig(image_size=found.image_size),
        TrainConfig(steps=1, batch_size=1),
        evaluation=Evaluation(options=found.options),
    )
    recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))))  # before anything is written
    folders.write_system(out, recipe, found.params, found.stats, beside)
