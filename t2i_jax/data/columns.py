"""Columns of a packed set: arrays that were computed from its records and lie beside them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from t2i_jax import paths
from t2i_jax.cluster import lock
from t2i_jax.data.arrayrecord import (
    ShardWriter,
    arrays_to_bytes,
    check_column,
    read_manifest,
    write_manifest,
)
from t2i_jax.data.ledger import Ledger
from t2i_jax.data.pack import LIMIT
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError

_COUNTS = ("bad", "cut")  # counts of a column, in the manifest


def add_column(
    packed: str | os.PathLike,
    column: str,
    rows: Iterable[Mapping[str, np.ndarray] | BadSample],
    *,
    about: Mapping[str, Any],
    max_bad_rate: float = 0.05,
    shard_bytes: int = 256 * 2**20,
    cut: Ledger | None = None,
) -> Mapping[str, Any]:
    """Stores arrays beside the records of a packed set, one row for each in order, and returns the
    new manifest.

    The manifest names the column when it is complete. Until then one that is there already stays,
    and an attempt that was stopped leaves nothing that is read.

    Args:
      column: one of `arrayrecord.COLUMNS`, which names the arrays of each.
      rows: the arrays of each record; a `BadSample` for one that has none, which is stored empty
        and counted.
      about: what they were made with, for the manifest.
      cut: what is cut or not read while the rows are made, for the manifest; None: nothing is.

    Raises:
      UserError: too many rows are bad, there are not as many as records, or another command is
        storing this column.
    """
    folder = paths.given("packed", packed)
    bad, seen = Ledger(), 0
    with lock.writing("packed", folder / column), _swept(folder, column):
        writer = ShardWriter(
            folder, _free_prefix(folder, column), shard_bytes, f"packed={str(folder)!r}"
        )
        for seen, row in enumerate(rows, 1):
            if isinstance(row, BadSample):
                bad.add(row)
                bad.check(seen, max_bad_rate, limit=LIMIT)
            writer.write(arrays_to_bytes({} if isinstance(row, BadSample) else row))
        bad.check(seen, max_bad_rate, True, LIMIT)
        if seen != (count := read_manifest(folder)["count"]):
            raise UserError(
                f"packed={str(folder)!r} has {count} records, not {seen}, as {column} has; encode "
                "it again."
            )
        counts = {"bad": dict(bad.by_reason), "cut": {} if cut is None else dict(cut.by_reason)}
        made = {**about, **counts, "shards": writer.close()}
        with lock.one_at_a_time(folder):  # another command may be adding another column
            manifest = read_manifest(folder)
            manifest = {**manifest, "columns": {**manifest["columns"], column: made}}
            write_manifest(folder, manifest)
    return manifest


def is_wanted(
    packed: str | os.PathLike, column: str, about: Mapping[str, Any], replace: bool = False
) -> bool:
    """Whether a column is to be computed: False where a packed set holds this very one, whole.

    Args:
      about: what it is to be made with; a tuple holds several values, each of which will do.
      replace: a column of this name that was made with something else, or is damaged, is to be
        made anew.

    Raises:
      UserError: there is such a column, and it is not to be replaced.
    """
    folder = paths.given("packed", packed)
    manifest = read_manifest(folder)
    there = manifest["columns"].get(column)
    if there is None:
        return True
    try:
        check_column(folder, manifest, column)
    except UserError:
        if not replace:
            raise
        return True
    changed = [
        key
        for key, value in about.items()
        if there.get(key) not in (value if isinstance(value, tuple) else (value,))
    ]
    if changed and not replace:
        shown = [key for key in changed if key in there]
        if shown != changed:  # another command made it, with fields of its own
            shown += [key for key in made_with(there) if key not in about]
        made = ", ".join(f"{key}={there[key]!r}" for key in shown)
        raise UserError(
            f"packed={str(folder)!r} has {column} of {made}; give --replace to make it anew."
        )
    return bool(changed)


def made_with(about: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a column's entry in a manifest that says what the column was made with."""
    return {name: value for name, value in about.items() if name not in (*_COUNTS, "shards")}


def _shards(folder, column):
    """The manifest's list of a column's files."""
    return read_manifest(folder)["columns"].get(column, {"shards": []})["shards"]


def _free_prefix(folder, column):
    """A prefix for the names of a column's new files, unlike that of the present ones, which stay
    until the new ones are complete.
    """
    is_taken = any(shard["file"].startswith(f"{column}-") for shard in _shards(folder, column))
    return f"{column}.new" if is_taken else column


@contextlib.contextmanager
def _swept(folder, column):
    """Removes, at the end, every file of a column that the manifest does not name."""
    try:
        yield
    finally:
        with contextlib.suppress(UserError, OSError):
            named = {shard["file"] for shard in _shards(folder, column)}
            kind = re.compile(rf"{column}(\.new)?-\d{{5}}(-of-\d{{5}}\.arrayrecord|\.partial)")
            for path in folder.iterdir():
                if kind.fullmatch(path.name) and path.name not in named:
                    path.unlink()
