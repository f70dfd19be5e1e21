"""Wiring of a recipe's task: its parts found, in order, for training and for compiling ahead
alike.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from t2i_jax import convert, paths
from t2i_jax.errors import UserError
from t2i_jax.runs import begin
from t2i_jax.runs.folder import load_run_recipe
from t2i_jax.runs.recipe import Recipe
from t2i_jax.systems.base import Given, Part

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
            of = _recipe_in(part_name, source)
        else:
            inner = f"{name}.{part_name}" if name else part_name
            home = None if workdir is None else workdir / part_name
            found.update(planned_stages(source, given, home, inner))
            of = found[inner][0]
        check_kind(part_name, part, of.task)
        return Given(of.task.network, of.task.weights_shapes())

    found[name] = wired(begin.with_parts(recipe, workdir), given or {}, plan)
    return found


def _recipe_in(name, path):
    try:
        return load_run_recipe(path)
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
