"""Wiring of a recipe's task: its parts found, in order, for training and for compiling ahead
alike.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from t2i_jax import convert, paths
from t2i_jax.errors import UserError
from t2i_jax.runs import begin
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe
from t2i_jax.systems.base import Given, Part
from t2i_jax.train.stored import last_step

# `resolve(name, part, source, given)` finds a part that is another task's: `source` is a recipe or
# the path of a run, `given` what the part inherits.
Resolve = Callable[[str, Part, Recipe | str, Mapping[str, Given]], Given]


def wired(
    recipe: Recipe, given: Mapping[str, Given], resolve: Resolve
) -> tuple[Recipe, dict[str, Given]]:
    """The recipe whose task has the networks of its parts, and the parts.

    Args:
      given: parts of the task around this one, inherited by name where the recipe names none.

    Raises:
      UserError: a part that is not what the task needs, or that is missing.
    """
    parts: dict[str, Given] = {}
    for name, part in recipe.task.parts.items():
        source = recipe.parts.get(name)
        if source is None:
            if name in given:
                parts[name] = given[name]
        elif part.is_file:
            parts[name] = _from_file(name, part, str(source), getattr(recipe.task, part.field))
        else:
            if isinstance(source, Recipe):
                check_kind(name, part, source.task)
            parts[name] = resolve(name, part, source, {**given, **parts})
    return dataclasses.replace(recipe, task=recipe.task.with_parts(parts)), parts


def planned(
    recipe: Recipe, given: Mapping[str, Given] | None = None
) -> tuple[Recipe, dict[str, Given]]:
    """The recipe and its parts like those of `wired`, with shapes in place of weights: nothing is
    trained, and no run's arrays are read.
    """
    return planned_stages(recipe, given)[""]


def planned_stages(
    recipe: Recipe,
    given: Mapping[str, Given] | None = None,
    workdir: pathlib.Path | None = None,
    name: str = "",
) -> dict[str, tuple[Recipe, dict[str, Given]]]:
    """The recipes of `planned` for each stage that is trained, in that order: by its name among the
    parts, "" for the recipe itself.

    Args:
      workdir: of the run, whose parts may be there already; None: it has none.
    """
    found: dict[str, tuple[Recipe, dict[str, Given]]] = {}

    def plan(part_name: str, part: Part, source: Recipe | str, given: Mapping[str, Given]) -> Given:
        if isinstance(source, str):
            of, about = _finished(part_name, source)
        else:
            inner = f"{name}.{part_name}" if name else part_name
            home = None if workdir is None else workdir / part_name
            found.update(planned_stages(source, given, home, inner))
            of, its = found[inner]
            about = {"parts": its, "home": home if _is_trained(of, home) else None}
        check_kind(part_name, part, of.task)
        return Given(of.task.network, of.task.weights_shapes(), planned=of.task, **about)

    found[name] = wired(begin.with_parts(recipe, workdir), given or {}, plan)
    return found


def told_apart(parts: Mapping[str, Given]) -> dict[str, Given]:
    """The planned parts, and what each was trained with, with fingerprints where two of one name
    may be two: the arrays of their runs are read, and no others.
    """
    doubtful = set()
    for part in parts.values():
        doubtful |= {name for name, own in part.parts.items() if own is not parts.get(name)}
        doubtful |= {name for about in part.made_with.values() for name in about}

    @functools.cache
    def fingerprint(home):
        return folders.fingerprint(folders.part_in(pathlib.Path(home)).weights)

    def known(name, part):
        if name not in doubtful or part.fingerprint or part.home is None or not part.home.is_dir():
            return part
        return dataclasses.replace(part, fingerprint=fingerprint(os.path.realpath(part.home)))

    return {
        name: dataclasses.replace(
            known(name, part), parts={inner: known(inner, own) for inner, own in part.parts.items()}
        )
        for name, part in parts.items()
    }


def with_weights(parts: Mapping[str, Given], known: dict[str, Given]) -> dict[str, Given]:
    """The planned parts, of which those that are trained have their weights and fingerprints: the
    arrays of their runs are read.

    Args:
      known: the parts that were read before, by folder; those that are read now are added.
    """
    found = dict(parts)
    for name, part in parts.items():
        if part.home is None or not part.home.is_dir():
            continue
        home = os.path.realpath(part.home)
        if home not in known:
            own = folders.part_in(pathlib.Path(home))
            known[home] = dataclasses.replace(own, fingerprint=folders.fingerprint(own.weights))
        found[name] = known[home]
    return found


def _is_trained(recipe, home):
    done = None if home is None else last_step(home)
    return done is not None and recipe.train is not None and done >= recipe.train.steps


def _finished(name, path):
    """The recipe of a finished run, and what its files tell of it."""
    try:
        recipe, home = folders.load_run_recipe(path), paths.given("run", path)
        parts = {
            inner: Given(
                None,
                None,
                home=home / (told.get("folder") or inner),
                fingerprint=told.get("fingerprint") or "",
            )
            for inner, told in folders.recorded_parts(home).items()
        }
        return recipe, {"parts": parts, "home": home, "made_with": folders.made_with(home)}
    except UserError as error:
        raise UserError(f"parts.{name}: {error}") from None


def check_kind(name: str, part: Part, task: Any) -> None:
    """Refuses a part that is the run of another task than the one that is wanted."""
    if not isinstance(task, part.of):
        raise UserError(
            f"parts.{name} is a run of {type(task).__name__}; give one of {part.of.__name__}."
        )


def _from_file(name, part: Part, path, own):
    """The network of a file of weights.

    Settings that the weights do not tell are as the task's own network says.
    """
    fields: dict[str, Any] = (
        {field: getattr(own, field) for field in part.told} if own is not None else {}
    )
    network, params = convert.from_torch(paths.given(f"parts.{name}", path), **fields)
    if not isinstance(network, part.of):
        wanted = f"a file with the weights of {part.of.__name__}"
        raise UserError(f"parts.{name}={path!r} holds a {type(network).__name__}; give {wanted}.")
    return Given(network, params)
