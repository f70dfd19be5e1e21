"""Checks that the arrays of a checkpoint are there, without Orbax, which opens them one by one and
takes as long for it as for writing them.
"""

from __future__ import annotations

import pathlib

import tensorstore as ts

_OF_AN_ARRAY = b"/.zarray"  # its shape and type, in Zarr's second format, that of Orbax


class Missing(ValueError):
    """An error: fewer arrays can be opened than were written."""


def check(item: pathlib.Path, count: int) -> None:
    """Reads the metadata of an item's arrays, all of them.

    Args:
      item: folder of a step, which holds an OCDBT database. count: how many arrays it has.

    Raises:
      Missing: there are others. ValueError: what is there can't be read.
    """
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item}/"}}
    database = ts.KvStore.open(base).result()
    names = [name for name in database.list().result() if name.endswith(_OF_AN_ARRAY)]
    reads = [database.read(name) for name in names]
    found = sum(bool(read.result().value) for read in reads)
    if found != count:
        raise Missing(f"{item.name} has {found} of {count} arrays")
