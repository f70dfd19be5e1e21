"""JSON files: strict where Python is not, so that what is read is what is meant."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.foreign import file
from t2i_jax.values import shown

_LIMIT = 256 * 2**20  # bytes
_DEPTH = 100  # values within values


def read(path: str | os.PathLike, field: str, remedy: str = "write it again") -> Any:
    """The value in a JSON file.

    Args:
      field: what the user calls it, for messages. remedy: for messages.

    Raises:
      UserError: no regular file, no UTF-8, no JSON, a key twice in one object, NaN or an infinite
        number, or values within values more than 100 deep.
    """
    path = file.check(path, field, _LIMIT)
    with file.refusing(path, field, "JSON", remedy):
        text = path.read_text(encoding="utf-8-sig")
        return parse(text, f"{field}={str(path)!r}", remedy)


def parse(text: str | bytes, where: str, remedy: str = "write it again") -> Any:
    """The value of a JSON text, checked as by `read`.

    Args:
      where: what holds the text, for messages.
    """

    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{where} has the key {twice!r} twice in one object; leave one.")
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        why = "values within values too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{where} is no JSON ({why}); {remedy}.") from error
    _check(found, where, remedy)
    return found


def an_object(value: Any, where: str, remedy: str = "write it again") -> dict[str, Any]:
    """The value, which is an object; UserError where it is not."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is {shown(value)} and not an object; {remedy}.")
    return value


def a(kind: type, value: Any, where: str, remedy: str = "write it again") -> Any:
    """The value, which is of a kind: int, float (an int too), str, bool or dict.

    Raises:
      UserError: it is of another kind.
    """
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} is {shown(value)}, which is not {kind.__name__}; {remedy}.")
    return value


def _check(value, where, remedy):
    """Refuses what no configuration holds, with its place."""
    todo = [(value, "", 1)]
    while todo:
        value, path, depth = todo.pop()
        if depth > _DEPTH:
            raise UserError(f"{where} has values within values more than {_DEPTH} deep; {remedy}.")
        if isinstance(value, float) and not math.isfinite(value):
            named = f"{where}: {path}" if path else where
            raise UserError(f"{named} is {value}, which is not a finite number; {remedy}.")
        if isinstance(value, dict):
            inside = [(f"{path}.{name}" if path else name, one) for name, one in value.items()]
        elif isinstance(value, list):
            inside = [(f"{path}[{i}]", one) for i, one in enumerate(value)]
        else:
            continue
        todo += [(one, name, depth + 1) for name, one in reversed(inside)]
