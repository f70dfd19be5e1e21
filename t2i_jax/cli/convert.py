"""`t2i convert`: weights of the PyTorch packages to a folder that t2i.load reads, and back."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

from t2i_jax import values
from t2i_jax.cli.arguments import Shown
from t2i_jax.errors import UserError


def from_torch(
    weights: pathlib.Path,
    out: pathlib.Path,
    fields: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    t5: Annotated[str | None, Shown("FOLDER|NAME")] = None,
) -> None:
    """Turn a checkpoint of a PyTorch package into a folder that t2i sample and t2i.load read.

    Args:
        weights: A .safetensors file, .pt/.bin/.pth (read without running any pickled code), or
            Flax's .msgpack, with or without that ending.
        out: New folder; nothing is overwritten.
        fields: Configuration that the weights don't tell, as heads=8; arguments of the package's
        class under the name of
            the system, as SYSTEM.image_sizes=(64,256).
        t5: The folder or hub name of the T5 on whose embeddings the system was trained.
    """
    from t2i_jax.runs import import_torch

    given: dict[str, Any] = {}
    for name, value in _fields(fields).items():
        if name == "t5":
            raise UserError(f"t5={value!r} is an option and no field; write --t5 {value}.")
        # "system.argument" is one of the package's class
        system, dot, argument = name.partition(".")
        if not name or (dot and not (system and argument)):
            raise UserError(f"field {name!r} is no name; write it as name=value.")
        if not isinstance(given.get(system, {}) if dot else {}, dict):
            raise UserError(f"field {name!r} is given beside {system!r}; leave one.")
        given = (
            {**given, system: {**given.get(system, {}), argument: value}}
            if dot
            else {**given, name: value}
        )
    print(f"written: {import_torch(weights, out, t5=t5, **given)}")


def to_torch(run: pathlib.Path, out: pathlib.Path) -> None:
    """Turn a run's weights into a state dict that the PyTorch package loads.

    Args:
        run: Folder of a run or of an exported system.
        out: New .pt or .safetensors file, or .msgpack for a package of Flax; nothing is
            overwritten.
    """
    from t2i_jax.runs import export_torch

    print(f"written: {export_torch(run, out)}")


def _fields(assignments):
    fields = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(f"field {assignment!r} has no '='; write it as name=value.")
        if name in fields:
            raise UserError(f"field {name!r} is given twice; leave one.")
        fields[name] = values.literal(text)
    return fields
