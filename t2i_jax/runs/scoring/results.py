"""The files of results, read again: a person may have edited them."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any, NamedTuple

from t2i_jax.errors import UserError

RESULTS, VALUES, MARKS = "results.json", "values.json", "marks.json"


class Stored(NamedTuple):
    """The contents of a folder of results.

    Attributes:
      results: of results.json.
      values: by metric its values by (prompt, number).
      marks: by (prompt, number) a digest of the caption or of the original image that the values
        are measured against, where their prompt does not tell it; {} in results of earlier
        versions.
    """

    results: dict[str, Any]
    values: dict[str, dict[Any, float]]
    marks: dict[Any, str]


def read_results(folder: pathlib.Path) -> Stored:
    """The results of a folder.

    Raises:
      UserError: there are none, or the files are damaged.
    """
    found = []
    for name, is_whole in ((RESULTS, _are_results), (VALUES, _are_values), (MARKS, _are_marks)):
        if name == MARKS and not (folder / name).exists():
            found.append([])
            continue
        try:
            found.append(json.loads((folder / name).read_text(encoding="utf-8")))
            whole = is_whole(found[-1])
        except (OSError, ValueError, RecursionError):
            whole = False
        if not whole:
            raise UserError(
                f"{str(folder / name)!r} is missing or damaged; give a folder that `t2i evaluate` "
                "has written results into."
            )
    values = {
        name: {(prompt, number): value for prompt, number, value in rows}
        for name, rows in found[1].items()
    }
    return Stored(found[0], values, {(prompt, number): mark for prompt, number, mark in found[2]})


def _are_results(found):
    """Whether all entries by which two results are compared have their form."""
    if not isinstance(found, dict) or not isinstance(found.get("metrics"), list):
        return False
    about = (found.get(name) for name in ("protocol", "prompts", "images"))
    return all(map(_is_metric, found["metrics"])) and all(map(_is_object_or_none, about))


def _is_metric(one):
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        return False
    span = one.get("interval")
    if not _is_number(one.get("value")) or not _is_object_or_none(span):
        return False
    span = span or {}
    halves, stderr = span.get("halves", []), span.get("stderr")
    return (
        isinstance(halves, list)
        and all(map(_is_number, halves))
        and (stderr is None or _is_number(stderr))
    )


def _are_values(found):
    return isinstance(found, dict) and all(
        isinstance(rows, list) and all(map(_is_value, rows)) for rows in found.values()
    )


def _is_value(row):
    """Whether an entry is [prompt, number of the image, value]."""
    return _is_row(row) and _is_number(row[2])


def _are_marks(found):
    return isinstance(found, list) and all(_is_row(one) and _is_text(one[2]) for one in found)


def _is_row(row):
    """Whether an entry is [prompt, number of the image, something]."""
    return isinstance(row, list) and len(row) == 3 and _is_text(row[0]) and isinstance(row[1], int)


def _is_text(value):
    return isinstance(value, str)


def _is_object_or_none(value):
    return value is None or isinstance(value, dict)


def _is_number(value):
    """Whether a value is a finite number that a float holds."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and abs(value) <= sys.float_info.max
