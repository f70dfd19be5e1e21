"""A run that was begun: what of its recipe may change when it is started again, and whether the
parts that it was begun with are there.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe, recipe_from_dict, recipe_to_dict
from t2i_jax.train.config import refuse_other_run
from t2i_jax.train.stored import last_step, load_config

FREE = (  # may change between starts; other weights of a part are refused by their fingerprint
    "evaluation", "parts", "data.workers", "data.threads", "data.max_bad_rate", "task.train_stages",
    "task.trains",
)  # fmt: skip


def check(recipe: Recipe, workdir: pathlib.Path) -> None:
    """Refuses a recipe, with the networks of its parts, that does not go on with what a folder
    holds. Nothing is written, and no array is read.

    Raises:
      UserError: the newest checkpoint is of another configuration, or a part that the run was
        begun with is missing, was not trained there, or would be trained further.
    """
    if last_step(workdir) is not None:
        stored = of_today(load_config(workdir))
        refuse_other_run(stored, recipe_to_dict(recipe), FREE, workdir)
    recorded = folders.recorded_parts(workdir)
    for name, source in recipe.parts.items():
        if isinstance(source, Recipe) and name in recorded:
            _check_done(name, source, workdir, recorded[name].get("folder"))


def of_today(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored recipe with the fields that there are today, at their defaults where it has none."""
    return recipe_to_dict(recipe_from_dict(stored))


def _check_done(name, source, workdir, recorded):
    """A part that this run was begun with is not trained anew, and not further."""
    folder = workdir / (recorded or name)
    done = last_step(folder)
    if recorded != name or folders.is_export(folder):
        raise UserError(
            f"parts.{name} is a recipe, and this run was begun with a finished part, in "
            f"{os.path.normpath(folder)!r}; give that folder, or train into a new one."
        )
    if not folder.is_dir() or (done is None and source.task.objectives):
        raise UserError(
            f"workdir={str(workdir)!r}: its part {name} is missing, which was trained in "
            f"{str(folder)!r}; restore that folder from a copy, or train into another workdir."
        )
    if done is not None and source.train is not None and done < source.train.steps:
        raise UserError(
            f"parts.{name}.train.steps={source.train.steps} would train further what this run was "
            f"begun with at step {done}; set it to {done}, or train into a new folder."
        )
