"""Comparison of two results: whether their difference is real, or what other images would have
given too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.intervals import (
    LEVEL,
    Interval,
    bootstrap,
    normal_quantile,
    student_quantile,
)
from t2i_jax.eval.protocol import require_same
from t2i_jax.values import shown
from t2i_jax.words import counted

Values = Mapping[str, Mapping[tuple[Hashable, int], float]]
"""One value per image, by metric and then by (prompt, number of the image among those of its
prompt)."""
Marks = Mapping[tuple[Hashable, int], str]
"""Digests of the captions or the original images that values are measured against, by (prompt,
number)."""

_LEAST = 10  # prompts that a paired difference needs
# entries of a metric that may differ between two results of one protocol
_FREE = ("value", "interval", "path", "file", "stderr", "seconds", "passed_over")
_LOWER = ("fid", "fd", "kid", "cmmd", "lpips", "rfid", "sfid", "mse", "loss", "clip_fid")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One metric of two results.

    Attributes:
      metric: its name.
      a: of the first. b: of the second.
      interval: of the difference b - a; None where neither result tells how sure it is.
      shared: prompts that both have, on which the difference is paired; 0: it is not paired.
      left_out: images that only one of them has.
    """

    metric: str
    a: float
    b: float
    interval: Interval | None
    shared: int = 0
    left_out: int = 0

    @property
    def difference(self) -> float:
        """The difference b - a."""
        return self.b - self.a

    @property
    def is_real(self) -> bool | None:
        """Whether the difference is real: its interval leaves out 0; None where there is no
        interval.
        """
        if self.interval is None:
            return None
        return not self.interval.low <= 0 <= self.interval.high

    @property
    def better(self) -> str | None:
        """The better result, "a" or "b", where the difference is real, else None."""
        if not self.is_real:
            return None
        return "b" if (self.difference < 0) == lower_is_better(self.metric) else "a"

    def about(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "metric": self.metric,
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "interval": None if self.interval is None else self.interval.about(),
            "is_real": self.is_real,
            "better": self.better,
            "shared": self.shared,
            "left_out": self.left_out,
        }


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is better, by the first words of its name."""
    return any(metric == name or metric.startswith(f"{name}_") for name in _LOWER)


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    values_a: Values | None = None,
    values_b: Values | None = None,
    level: float = LEVEL,
    marks: tuple[Marks, Marks] = ({}, {}),
) -> list[Comparison]:
    """The metrics that two results share.

    A metric with one value per image is compared on the images that both have: the mean of the
    paired differences, prompts resampled. A Frechet distance is compared by the same random halves
    of both, where both were measured so. Anything else by the standard errors of the two.

    Args:
      a, b: results: "metrics", for each name an entry with "value", "interval" (as
        `Interval.about` or `Halves.about`) and what it was measured with; "protocol" and
        "prompts" (with "sha256" and "file_sha256") where there are such. "metrics" may be a list
        of entries with "name".
      values_a, values_b: one value per image, of those metrics that have them.
      marks: of the values of both that have one.

    Raises:
      UserError: the results share no metric, were measured in different ways (with the field), or
        against other captions or images under the same names.
    """
    entries_a, entries_b = _entries(a), _entries(b)
    names = [name for name in entries_a if name in entries_b]
    if not names:
        raise UserError(
            f"the results share no metric: the first has {', '.join(entries_a) or 'none'}, the "
            f"second {', '.join(entries_b) or 'none'}; measure one in both."
        )
    found = []
    for name in names:
        left, right = entries_a[name], entries_b[name]
        pairs = (values_a or {}).get(name), (values_b or {}).get(name)
        require_same(name, a.get("protocol") or {}, b.get("protocol") or {})
        if pairs[0] is not None and pairs[1] is not None:
            require_same(name, _measured(left, False), _measured(right, False))
            _check_ids(name, a, b)
            _check_grids(name, *pairs, a, b)
            _check_marks(name, pairs[0], *marks)
            found.append(_paired(name, *pairs, level))
        else:
            require_same(name, _measured(left, True), _measured(right, True))
            require_same(name, _prompts(a), _prompts(b))
            found.append(_unpaired(name, left, right, level))
    return found


def table(comparisons: Sequence[Comparison], names: tuple[str, str] = ("A", "B")) -> str:
    """The comparisons as lines of text, one per metric: both values, the difference with its
    interval, and whether it is real.
    """
    rows = [("metric", *names, "difference", "interval", "")]
    for one in comparisons:
        span = one.interval
        told = "" if span is None else f"[{span.low:+.4g}, {span.high:+.4g}]"
        numbers = f"{one.a:.4g}", f"{one.b:.4g}", f"{one.difference:+.4g}"
        rows.append((one.metric, *numbers, told, _verdict(one, names)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[5]]).rstrip()
        for row in rows
    )


def _verdict(one, names):
    if one.is_real is None:
        return "no interval: it can't be told"
    paired = f" on {counted(one.shared, 'shared prompt')}" if one.shared else ""
    if one.left_out:
        paired += f", without {counted(one.left_out, 'image')} that one of them alone has"
    if not one.is_real:
        return f"may be chance{paired}"
    return f"{names[0] if one.better == 'a' else names[1]} is better{paired}"


def _check_ids(name, a, b):
    """Refuses to pair images by the ids of prompts of two files, in which one id, often the number
    of a line, may be of two prompts.
    """
    files = [(one.get("prompts") or {}).get("file_sha256") for one in (a, b)]
    if None not in files and files[0] != files[1]:
        require_same(name, _prompts(a), _prompts(b))


def _check_grids(name, left, right, a, b):
    """Refuses to pair the images of grids with files of one prompt each that may be whole grids."""
    told = []
    for one, values in ((a, left), (b, right)):
        images = one.get("images") or {}
        is_open = "path" in images and not any(number for _, number in values)
        told.append(images.get("grid", None if is_open else 1))
    if None in told and any(grid not in (None, 1) for grid in told):
        require_same(name, *({"images.grid": grid} for grid in told))


def _check_marks(name, values, left, right):
    """Refuses to pair values under one name that are of two captions, or of two images that were
    reconstructed. Results of earlier versions do not tell.
    """
    others = [key for key in values if key in left and right.get(key, left[key]) != left[key]]
    if others:
        raise UserError(
            f"{name} can't be compared: {shown(others[0][0])} is measured against one caption or "
            "original image in the first and against another in the second "
            f"({len(others):,} of {counted(len(values), 'value')}); measure both with the same."
        )


def _paired(name, left, right, level):
    shared = [key for key in left if key in right]
    prompts = [key[0] for key in shared]
    number = len(set(prompts))
    if number < _LEAST:
        raise UserError(
            f"{name} has {counted(number, 'prompt')} that both results hold{_alone(left, right)}, "
            f"too few to compare; give results with {_LEAST} or more in common."
        )
    first, second = (np.array([side[key] for key in shared]) for side in (left, right))
    interval = bootstrap(second - first, prompts, level)
    interval = dataclasses.replace(interval, method=f"paired differences, {interval.method}")
    return Comparison(
        name,
        float(first.mean()),
        float(second.mean()),
        interval,
        number,
        len(left) + len(right) - 2 * len(shared),
    )


def _alone(left, right):
    """The end of a sentence that names a value which only one of two results has: an id of a prompt
    or the name of an image.
    """
    told = [
        f"the {which} has {shown(next(key[0] for key in one if key not in other))} alone"
        for which, one, other in (("first", left, right), ("second", right, left))
        if any(key not in other for key in one)
    ]
    return f" ({', '.join(told)})" if told else ""


def _unpaired(name, left, right, level):
    a, b = float(left["value"]), float(right["value"])
    spans = left.get("interval") or {}, right.get("interval") or {}
    if all("halves" in span for span in spans) and (
        spans[0].get("halves_seed") == spans[1].get("halves_seed")
        and len(spans[0]["halves"]) == len(spans[1]["halves"]) > 1
    ):
        drawn = np.subtract(spans[1]["halves"], spans[0]["halves"])
        stderr = float(drawn.std(ddof=1))
        reach = student_quantile(len(drawn) - 1, level) * stderr
        method = f"paired differences of {len(drawn)} random halves of the images"
    elif all(span.get("stderr") is not None for span in spans):
        stderr = float(np.hypot(spans[0]["stderr"], spans[1]["stderr"]))
        reach, method = normal_quantile(level) * stderr, "normal, both standard errors"
    else:
        return Comparison(name, a, b, None)
    difference = b - a
    return Comparison(
        name, a, b, Interval(difference - reach, difference + reach, method, stderr, level)
    )


def _entries(results):
    metrics = results.get("metrics") or {}
    if isinstance(metrics, Mapping):
        return {
            name: one if isinstance(one, Mapping) else {"value": one}
            for name, one in metrics.items()
        }
    return {one["name"]: one for one in metrics}


def _measured(entry, whole):
    """The settings that a metric was measured with; without the numbers of images where those are
    paired.
    """
    free = _FREE if whole else (*_FREE, "n_generated", "count", "missing")
    return {
        name: _measured(one, whole) if isinstance(one, Mapping) else one
        for name, one in entry.items()
        if name not in free
    }


def _prompts(results):
    known = (results.get("prompts") or {}).get("sha256")
    return {} if known is None else {"prompts.sha256": known}
