"""The best of a run's checkpoints by its metric, and those that may be removed.

Every checkpoint holds its own score, and of which metric that is, so what is the best is told by
what is there, whenever a crash comes. A step that was saved in haste, before it was measured, is
measured when the run resumes from it; that score is kept in RUN/scores.json.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from t2i_jax.files import read_object, replacing
from t2i_jax.train import digests

# in the position of the data of a checkpoint: its score, and the metric where it is not that of a
# validation with all groups trained
SCORE, SCORE_OF = "score", "score_of"
_LATER = "scores.json"  # beside the folder of the checkpoints
_OWN = "data/metadata"  # in the folder of a step


def steps_in(folder: pathlib.Path) -> list[int]:
    """The finished steps below the folder of checkpoints, ascending; [] where it is not there."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in _named_as_steps(folder) if entry.is_dir())


def others_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """What has the name of a step in the folder of checkpoints, and is no folder."""
    return sorted(entry for entry in _named_as_steps(folder) if not entry.is_dir())


def scores(
    folder: pathlib.Path, metric: str | None = None, without: Iterable[int] | None = None
) -> Mapping[int, float]:
    """The score of each finished step below the folder of checkpoints that has one, without those
    that are `doubtful`.

    Args:
      metric: whose scores, such as `validation_of`; None: that of the newest step with a score, as
        a run may go on by another metric, whose scores are no match for those before.
      without: the steps that are `doubtful`, where they are known; None: they are looked for.
    """
    without = doubtful(folder) if without is None else without
    found: dict[int, dict[str, float]] = {}
    later = _read(folder.with_name(_LATER))
    for step in sorted({*steps_in(folder)} - {*without}):
        name = str(step)
        entry = later.get(name)
        added = _entry(entry if isinstance(entry, dict) else {SCORE: entry})
        own = _entry(_read(folder / name / _OWN))
        if entries := own | added | own:  # its own comes first, and counts where both have one
            found[step] = entries
    if metric is None:
        metric = next(iter(found[max(found)]), "") if found else ""
    return {step: entries[metric] for step, entries in found.items() if metric in entries}


def doubtful(folder: pathlib.Path) -> dict[int, str]:
    """The finished steps whose file with the score is not what was written, and what is wrong with
    it.
    """
    found = {}
    for step in steps_in(folder):
        try:
            digests.check_file(folder / str(step), _OWN)
        except digests.Damaged as error:
            if (folder / str(step)).is_dir():  # a run that is training may have removed it
                found[step] = str(error)
    return found


def validation_of(trained: Iterable[str], groups: Iterable[str]) -> str:
    """The name of the validation's metric, another one for every choice of the groups that are
    trained, whose losses it is made of; "": all of them.
    """
    trained = set(trained)
    return "" if trained >= set(groups) else f"validation of {', '.join(sorted(trained))}"


def best_of(found: Mapping[int, float]) -> int | None:
    """The step with the smallest score, the first of equal ones; None without any."""
    return min(found, key=lambda step: (found[step], step), default=None)


def kept(
    steps: list[int], keep: int, found: Mapping[int, float], doubtful: Iterable[int] = ()
) -> set[int]:
    """The steps that stay: the last `keep`, the best, and those that may be the best."""
    best = best_of({step: score for step, score in found.items() if step in steps})
    return {*sorted(steps)[-keep:], *([] if best is None else [best]), *doubtful}


def add(folder: pathlib.Path, step: int, score: float, metric: str = "") -> None:
    """Notes the score of a step that was saved without one."""
    path = folder.with_name(_LATER)
    with replacing(path) as temporary:
        entry = {SCORE: score, SCORE_OF: metric} if metric else score
        temporary.write_text(json.dumps({**_read(path), str(step): entry}))


def adopt(folder: pathlib.Path, metric: str, is_of: Callable[[Mapping[str, Any]], bool]) -> None:
    """Notes scores without a metric's name as those of a metric: earlier releases gave validations
    none, whatever was trained.

    Args:
      is_of: whether such a score is of the metric, by the configuration of its step.
    """
    named = scores(folder, metric)
    for step, score in scores(folder, "").items():
        if step not in named and is_of(_read(folder / str(step) / "config" / "metadata")):
            add(folder, step, score, metric)


def _named_as_steps(folder):
    return [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]


def _read(path) -> dict:
    return read_object(path) or {}


def _entry(found):
    """The scores by metric of JSON values, {metric: score}; {} where there is no score."""
    score, metric = _number(found.get(SCORE)), found.get(SCORE_OF, "")
    return {} if score is None or not isinstance(metric, str) else {metric: score}


def _number(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
