"""Several guidances of one run side by side: the table and the plot of distance over CLIP score."""

from __future__ import annotations

import html
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_jax import files
from t2i_jax.errors import UserError
from t2i_jax.runs.plot import plot
from t2i_jax.runs.report import REPORT, page_of
from t2i_jax.runs.scoring import plan, replaced
from t2i_jax.values import shown

FILE = "sweep.json"
_DISTANCES = ("fid_", "fd_", "cmmd_", "kid_")
_ALIGNMENTS = ("clip_score", "score_", "judge_")


def parse_guidances(text: str) -> list[float]:
    """The numbers in "1.5,3,5".

    Raises:
      UserError: no numbers, one that is not finite, or one that stands twice in six digits, by
        which folders are named.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"guidance={shown(text)} is no list of numbers; write 1.5,3,5.") from None
    if not all(map(math.isfinite, found)):
        raise UserError(f"guidance={shown(text)} has a number that is not finite; write 1.5,3,5.")
    if len({f"{one:g}" for one in found}) < len(found):
        raise UserError(f"guidance={shown(text)} has a number twice; give it once.")
    return found


def table(found: Mapping[float, Mapping[str, Any]]) -> list[str]:
    """The table as lines of text: a row for each guidance, a column for each metric.

    Args:
      found: results by guidance.
    """
    names = [one["name"] for one in next(iter(found.values()))["metrics"]]
    rows = [("guidance", *names)]
    for guidance, results in found.items():
        values = {one["name"]: one["value"] for one in results["metrics"]}
        rows.append((f"{guidance:g}", *(f"{values[name]:.4g}" for name in names)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(names) + 1)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def curves(found: Mapping[float, Mapping[str, Any]]) -> list[str]:
    """The SVGs of each distance over each measure of alignment, a point for each guidance; [] where
    one of the two was not measured.
    """
    names: Sequence[str] = [one["name"] for one in next(iter(found.values()))["metrics"]]
    pages = []
    for distance in (name for name in names if name.startswith(_DISTANCES)):
        for alignment in (name for name in names if name.startswith(_ALIGNMENTS)):
            points = []
            for results in found.values():
                values = {one["name"]: one["value"] for one in results["metrics"]}
                points.append((values[alignment], values[distance]))
            pages.append(plot(f"{distance} over {alignment}", {"guidance": points}))
    return pages


def write(out: pathlib.Path, found: Mapping[float, Mapping[str, Any]]) -> None:
    """Writes OUT/sweep.json, by guidance the value of each metric, and OUT/report.html. A table
    that is there and has other values is kept, see `replaced.keep`.
    """
    rows = {
        f"{guidance:g}": {one["name"]: one["value"] for one in results["metrics"]}
        for guidance, results in found.items()
    }
    if begun := files.read_object(out / FILE):
        replaced.keep(out, (FILE,), replaced.lost_guidances(begun, rows))
    plan.write_json(out / FILE, rows)
    told = html.escape("\n".join(table(found)))
    links = "".join(
        f"<li><a href='guidance-{one:g}/{REPORT}'>guidance {one:g}</a></li>" for one in found
    )
    plots = f"<div class='plots'>{''.join(curves(found))}</div>"
    with files.replacing(out / REPORT) as path:
        sections = [f"<pre>{told}</pre>", plots, f"<ul>{links}</ul>"]
        path.write_text(page_of("Guidance", sections), encoding="utf-8")
