"""`t2i config RECIPE`: what a recipe is made of, field by field."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from t2i_jax import config as configs
from t2i_jax import paths, values
from t2i_jax.cli import docstring
from t2i_jax.cli.arguments import Shown


def show(
    recipe: pathlib.Path,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
) -> None:
    """Print a recipe with all of its fields, what they mean, and what differs from the defaults.

    Each line is FIELD=VALUE, as `t2i train RECIPE FIELD=VALUE` takes it; a star marks a value that
    is not the field's default. Nothing is read and nothing trains.

    Args:
        recipe: A recipe file with get_config(), such as configs/parti/shapes.py; or the folder of a
        run.
        overrides: Fields to change, as train.steps=1000.
    """
    from t2i_jax import runs
    from t2i_jax.runs.recipe import changed

    recipe = paths.given("config", recipe)
    load = runs.load_run_recipe if recipe.is_dir() else runs.load_recipe
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    for line in lines(changed(load(recipe), overrides), width):
        print(line)


def lines(recipe: Any, width: int = 100) -> Iterator[str]:
    """The lines of a recipe: one per field, what it means below it."""
    yield from _fields(recipe, "", width)


def _fields(value, path, width):
    from t2i_jax.runs.recipe import Recipe

    for name, inner, default, about in _entries(value):
        place = f"{path}{name}"
        # overrides name the parts of a recipe without "parts."
        inside = path if isinstance(value, Recipe) and name == "parts" else f"{place}."
        below = list(_fields(inner, inside, width)) if _has_fields(inner) else []
        text = type(inner).__name__ if dataclasses.is_dataclass(inner) else _written(inner)
        differs = not below and default is not _NONE and inner != default
        note = f"   (default {_written(default)})" if differs else ""
        yield f"{'*' if differs or default is _NONE and not below else ' '} {place}={text}{note}"
        if about:
            yield docstring.wrapped(about, width, "      ")
        yield from below


_NONE = object()  # a field that has no default


def _entries(value):
    """The fields of a value: (name, value, default, docs) of each."""
    if isinstance(value, Mapping):
        return [(str(name), inner, _NONE, "") for name, inner in value.items()]
    if isinstance(value, tuple):
        return [(str(i), inner, _NONE, "") for i, inner in enumerate(value)]
    fields = configs.fields_of(type(value))
    former = typing.get_type_hints(type(value))  # names that only the constructor knows too
    told = docstring.of_names(type(value), {**fields, **former})
    return [
        (name, getattr(value, name), configs.default_of(field, _NONE), told.get(name, ""))
        for name, field in fields.items()
    ]


def _has_fields(value):
    if isinstance(value, tuple):
        return any(map(dataclasses.is_dataclass, value))
    return bool(value) if isinstance(value, Mapping) else dataclasses.is_dataclass(value)


def _written(value):
    if isinstance(value, str):
        return value
    if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        return f"({', '.join(type(entry).__name__ for entry in value)})"
    if isinstance(value, Mapping):
        return values.shown(value)  # each of its entries has a line
    return type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
