"""Which of a run's checkpoints is the best by its validation metric, and which may go.

Every checkpoint holds its own score, so what is the best is told by what is there, whenever a crash
comes. A step that was saved in haste, before it was measured, is measured when the run resumes from
it; that score is kept in RUN/scores.json.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping

from t2i_jax.files import replacing

SCORE = "score"  # in the position of the data of a checkpoint
_LATER = "scores.json"  # beside the folder of the checkpoints


def steps_in(folder: pathlib.Path) -> list[int]:
    """The finished steps below the folder of checkpoints, ascending; [] where it is not there."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def scores(folder: pathlib.Path) -> Mapping[int, float]:
    """The score of each finished step below the folder of checkpoints that has one."""
    found: dict[int, float] = {}
    later = _read(folder.with_name(_LATER))
    for step in steps_in(folder):
        name = str(step)
        own = _number(_read(folder / name / "data" / "metadata").get(SCORE))
        score = own if own is not None else _number(later.get(name))
        if score is not None:
            found[step] = score
    return found


def best_of(found: Mapping[int, float]) -> int | None:
    """The step with the smallest score, the first of equal ones; None without any."""
    return min(found, key=lambda step: (found[step], step), default=None)


def kept(steps: list[int], keep: int, found: Mapping[int, float]) -> set[int]:
    """The steps that stay: the last `keep`, and the best."""
    best = best_of({step: score for step, score in found.items() if step in steps})
    return {*sorted(steps)[-keep:], *([] if best is None else [best])}


def add(folder: pathlib.Path, step: int, score: float) -> None:
    """Notes the score of a step that was saved without one."""
    path = folder.with_name(_LATER)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**_read(path), str(step): score}))


def _read(path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
