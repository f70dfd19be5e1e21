"""A run that was begun: what of its recipe may change when it is started again, whether the parts
that it was begun with are there, and whether its folder belongs to something else.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax.cluster import processes
from t2i_jax.errors import UserError
from t2i_jax.files import read_object
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe, recipe_from_dict, recipe_to_dict
from t2i_jax.terminal import say
from t2i_jax.train.config import refuse_other_run
from t2i_jax.train.stored import last_step, load_config

FREE = (  # may change between starts; other weights of a part are refused by their fingerprint
    "evaluation", "parts", "data.workers", "data.threads", "data.max_bad_rate", "task.train_stages",
    "task.trains",
)  # fmt: skip
# By kind of data that lie at a path, how many of its last parts name them: a pattern of shards says
# less than its folder.
_IN_FILES = {"folder": 1, "arrayrecord": 1, "webdataset": 2}


def check(recipe: Recipe, workdir: pathlib.Path) -> None:
    """Refuses a recipe, with the networks of its parts, that does not go on with what a folder
    holds. Nothing is written, and no array is read.

    Raises:
      UserError: the newest checkpoint is of another configuration, the folder's system is read from
        elsewhere than from checkpoints, or a part that the run was begun with is missing, was not
        trained there, or would be trained further.
    """
    is_joined = _check_place(recipe, workdir)
    step = last_step(workdir)
    if step is not None:
        stored = of_today(load_config(workdir))
        refuse_other_run(at_hand(stored, recipe), recipe_to_dict(recipe), FREE, workdir)
        before = (stored.get("data") or {}).get("source")
        if recipe.data is not None and before != recipe.data.source and processes.is_first():
            say(
                f"data.source={recipe.data.source!r} was {before!r} when {str(workdir)!r} was "
                "saved, and is read on as the same records in another place."
            )
    recorded = folders.recorded_parts(workdir)
    for name, source in recipe.parts.items():
        # where parts.json was lost, what is trained here lies in the folder of its name
        entry = recorded.get(name, {"folder": name} if is_joined or step is not None else None)
        if isinstance(source, Recipe) and entry is not None:
            _check_done(name, source, workdir, entry.get("folder"))


def check_around(recipe: Recipe, workdir: pathlib.Path) -> None:
    """Refuses to train further what another run was begun with: one around this folder, or one
    beside it, as a stage has what it inherits.

    Raises:
      UserError: a parts.json there names this folder.
    """
    done, here = last_step(workdir), os.path.realpath(workdir)
    if done is None or recipe.train is None or recipe.train.steps <= done:
        return
    for home in {os.path.dirname(os.path.abspath(workdir)), os.path.dirname(here)}:
        around = pathlib.Path(home)
        for path in [around / folders.PARTS, *around.glob(f"*/{folders.PARTS}")]:
            for name, folder in _begun_with(path):
                if os.path.realpath(path.parent / folder) == here:
                    raise UserError(
                        f"workdir={str(workdir)!r} is the part {name} of run={str(path.parent)!r}, "
                        f"which was begun with its step {done} and could not be read with another; "
                        f"set train.steps={done}, or train in a new folder with "
                        f"init={str(workdir)!r}."
                    )


def of_today(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored recipe with the fields that there are today, at their defaults where it has none."""
    return recipe_to_dict(recipe_from_dict(stored))


def at_hand(stored: Mapping[str, Any], recipe: Recipe) -> Mapping[str, Any]:
    """A stored recipe whose data lie where those of a recipe do, where these have been moved: they
    are of the same kind, in files, and have the same name in another folder.

    That they are as many as they were is seen when they are read on.
    """
    data = stored.get("data")
    if not data or recipe.data is None:
        return stored
    names = {_name(source) for source in (data["source"], recipe.data.source)}
    if len(names) > 1 or None in names:
        return stored
    return {**stored, "data": {**data, "source": recipe.data.source}}


def _name(source):
    """(kind, end of the path) of data in files; None of others."""
    kind, _, path = source.partition(":")
    parts = pathlib.Path(path).parts
    return (kind, parts[-_IN_FILES[kind] :]) if kind in _IN_FILES else None


def _begun_with(path):
    """The (name, folder) of the parts in a parts.json, which may be none of ours."""
    for name, entry in (read_object(path) or {}).items():
        known = entry if isinstance(entry, dict) else {}
        if known.get("fingerprint") and isinstance(known.get("folder"), str):
            yield name, known["folder"]


def _check_place(recipe, workdir):
    """Refuses a folder in which checkpoints would not be what is read; whether it holds a run that
    joins its parts.
    """
    if folders.is_export(workdir):
        raise UserError(
            f"workdir={str(workdir)!r} holds an exported system ({folders.EXPORT}), which would go "
            "on being read in place of what is trained; name a new workdir, where init= with this "
            "one begins with its weights."
        )
    if not folders.is_joined(workdir):
        return False
    theirs, own = (type(one.task) for one in (folders.load_run_recipe(workdir), recipe))
    if theirs is not own:
        raise UserError(
            f"workdir={str(workdir)!r} holds a run of {theirs.__name__}, which joins its parts, "
            f"and this recipe is one of {own.__name__}; name a new workdir."
        )
    return True


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
