"""WORKDIR/division.json: how a run's data were divided when it was begun, so that what they hold
out later is not taken for the same.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from t2i_jax.data.heldout import Division
from t2i_jax.data.pipeline import DataConfig, division_of
from t2i_jax.data.source import Source
from t2i_jax.errors import UserError
from t2i_jax.files import read_object, replacing

FILE = "division.json"


def note(workdir: pathlib.Path, data: DataConfig, source: Source) -> None:
    """Writes the division of the data that a run begins with; nothing where none is held out."""
    found = division_of(data, source)
    if found is None:
        (workdir / FILE).unlink(missing_ok=True)  # of a start that saved nothing
        return
    with replacing(workdir / FILE) as path:
        path.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")


def noted(run: pathlib.Path) -> Division | None:
    """The division that a run was begun with; None of one that holds nothing out, or is older than
    such files.

    Raises:
      UserError: a damaged file.
    """
    path = run / FILE
    if not path.exists():
        return None
    try:
        found = Division(**(read_object(path) or {}))
    except TypeError:
        found = None
    if found is None or any(
        type(value) not in (int, bool) for value in dataclasses.asdict(found).values()
    ):
        raise UserError(f"run={str(path)!r} holds no division of data; restore it from a copy.")
    return found
