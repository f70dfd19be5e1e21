"""Results that those of another command take the place of: they are kept beside them."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from t2i_jax import files, paths
from t2i_jax.foreign.arrays import some
from t2i_jax.systems import notices


def keep(folder: pathlib.Path, names: Iterable[str], lost: Iterable[str]) -> None:
    """Copies files into FOLDER/results-1, or the next number that is free, before others take their
    places, and tells of it. Files that are kept already, as a killed command left them, stay where
    they are.

    Args:
      names: of the files, which may be missing but for the first, by which they are known again.
      lost: what the new files do not hold, in words; (): nothing is lost, and nothing is done.
    """
    if not (lost := list(lost)):
        return
    first, *others = names
    data, number = (folder / first).read_bytes(), 1
    for place in folder.iterdir():
        if found := re.fullmatch(r"results-(\d{1,9})", place.name):
            if (place / first).is_file() and (place / first).read_bytes() == data:
                return
            number = max(number, int(found[1]) + 1)
    place = folder / f"results-{number}"
    with files.replacing(place) as temporary:
        temporary.mkdir()
        (temporary / first).write_bytes(data)
        for name in others:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
    notices.tell(
        f"out={paths.shown(folder)} had results that are not measured now ({some(lost, 4)}); they "
        f"are kept in {place.name}"
    )


def lost_metrics(begun: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """The names of the metrics whose entry in results.json, with its value and all that it was
    measured with, other results do not have; all of them where the protocols differ.

    Args:
      begun, results: contents of results.json, the one there and the one to be written.
    """
    results = json.loads(json.dumps(results))
    same = begun.get("protocol") == results["protocol"]
    return [one["name"] for one in begun["metrics"] if not same or one not in results["metrics"]]


def lost_guidances(begun: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    """The guidances of a sweep.json of which a new one has not all values.

    Args:
      begun, table: by guidance the value of each metric, in the one there and in the new one.
    """
    return [
        f"guidance {name}" for name, values in begun.items()
        if not isinstance(values, dict) or not values.items() <= table.get(name, {}).items()
    ]  # fmt: skip
