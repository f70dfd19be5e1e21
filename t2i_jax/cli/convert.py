"""`t2i convert`: weights of the PyTorch packages to a folder that t2i.load reads, and back."""

from __future__ import annotations

import pathlib
from typing import Annotated

import tyro

from t2i_jax.errors import UserError


def from_torch(
    weights: Annotated[pathlib.Path, tyro.conf.Positional],
    out: Annotated[pathlib.Path, tyro.conf.Positional],
    fields: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
) -> None:
    """Turn weights of a PyTorch package into a folder that t2i sample and t2i.load read.

    Args:
        weights: A .safetensors file, or .pt/.bin/.pth (read without running any pickled code).
        out: New folder; nothing is overwritten.
        fields: What the weights alone don't tell, as heads=8 or text=google/t5-v1_1-base.
    """
    from t2i_jax import runs

    print(f"written: {runs.import_torch(weights, out, _fields(fields))}")


def to_torch(
    run: Annotated[pathlib.Path, tyro.conf.Positional], out: Annotated[pathlib.Path, tyro.conf.Positional]
) -> None:
    """Turn a run's system into a state dict that the PyTorch package loads with strict=True.

    Args:
        run: Folder of a run or of an exported system.
        out: New .pt or .safetensors file; nothing is overwritten.
    """
    from t2i_jax import runs

    print(f"written: {runs.export_torch(run, out)}")


def help_convert() -> None:
    """Weights to and from the PyTorch packages; see t2i convert --help."""
    print("t2i convert has the commands from-torch and to-torch; see t2i convert --help.")


def _fields(assignments):
    import ast

    fields = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"field {assignment!r} has no '='; write it as name=value.")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    return fields


COMMANDS = {"from-torch": from_torch, "to-torch": to_torch}
