"""OUT/report.html: the numbers with their intervals, and images that tell more than numbers do."""

from __future__ import annotations

import html
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.data.source import BadSample
from t2i_jax.eval import distances
from t2i_jax.eval.rows import Rows
from t2i_jax.files import replacing
from t2i_jax.pixels import png_bytes
from t2i_jax.runs.report import REPORT, page_of, samples
from t2i_jax.runs.scoring.metrics import INCEPTION_LAYERS
from t2i_jax.runs.scoring.score import Images

_SHOWN, _EXTREMES, _NEIGHBOURS = 32, 8, 16
_RANKED = ("clip_score", "score_")


def write_page(
    out: pathlib.Path,
    title: str,
    results: Mapping[str, Any],
    values: Mapping[str, Mapping[tuple[str, int], float]],
    images: Images,
    nearest: Sequence[tuple[int, np.ndarray, float]] = (),
) -> None:
    """Writes the page of results.

    Args:
      values: one per image, by metric. nearest: (number of a generated image, the reference image
        nearest to it, their distance).
    """
    sections = [
        _table(results),
        _categories(results),
        _first(images),
        *_extremes(values, images),
        _nearest(nearest, images),
        f"<h2>All of it</h2><pre>{html.escape(_shortened(results))}</pre>",
    ]
    with replacing(out / REPORT) as path:
        path.write_text(page_of(title, sections), encoding="utf-8", errors="replace")


def neighbours(
    generated_ND: Rows, reference_MD: Rows, read: Any
) -> list[tuple[int, np.ndarray, float]]:
    """The nearest reference images of the first generated images: (row of a generated image, the
    reference image nearest to it, their distance) of each.

    Args:
      read: row of the reference -> its image; None where there is none.
    """
    rows_K1, apart_K1 = distances.nearest(generated_ND[:_NEIGHBOURS], reference_MD, 1)
    found = []
    for number, (row, distance) in enumerate(zip(rows_K1[:, 0], apart_K1[:, 0], strict=True)):
        image = read(int(row))
        if image is not None:
            found.append((number, image, float(distance)))
    return found


def layer_of_neighbours(extractor: str) -> str | None:
    """The layer in which neighbours are looked for; None for an extractor that is not asked."""
    return INCEPTION_LAYERS[0] if extractor.startswith("inception-") else None


def _table(results):
    rows = []
    for one in results["metrics"]:
        span, against = one["interval"], one["n_reference"]
        told = "" if span is None else f"[{span['low']:.5g}, {span['high']:.5g}]"
        seen = f"{one['n_generated']:,} images" + (f" against {against:,}" if against else "")
        method = "" if span is None else span["method"]
        cells = (one["name"], f"{one['value']:.5g}", told, seen, method)
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _categories(results):
    parts = []
    for metric, found in results["categories"].items():
        rows = []
        for name, one in found.items():
            span = one["interval"]
            told = "" if span is None else f"[{span['low']:.4g}, {span['high']:.4g}]"
            cells = (name, f"{one['value']:.4g}", told, f"{one['count']:,} images")
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(f"<h3>{html.escape(metric)}</h3><table>{table}</table>")
    return f"<h2>By category</h2>{''.join(parts)}" if parts else ""


def _first(images):
    rows = (row for row in range(images.files.split.count) if _is_whole(images, row))
    return samples("The first images", *_pictures(images, itertools.islice(rows, _SHOWN)), None)


def _is_whole(images, row):
    """Whether an image can be read; results count those that can't."""
    try:
        images.files.read(row)
    except BadSample:
        return False
    return True


def _extremes(values, images):
    number = {tuple(key): row for row, key in enumerate(images.keys)}
    pages = []
    for metric, by_key in values.items():
        if not metric.startswith(_RANKED):
            continue
        ranked = sorted(by_key, key=lambda key: (by_key[key], key))
        for what, order in (("best", ranked[::-1]), ("worst", ranked)):
            there = (key for key in order if _is_whole(images, number[key]))  # some are not kept
            keys = list(itertools.islice(there, _EXTREMES))
            shown, told = _pictures(images, [number[key] for key in keys])
            told = [f"{text} ({by_key[key]:.4g})" for text, key in zip(told, keys, strict=True)]
            pages.append(samples(f"The {what} by {metric}", shown, told, None))
    return pages


def _nearest(nearest, images):
    shown, told = [], []
    for row, image, distance in (one for one in nearest if _is_whole(images, one[0])):
        own, text = _pictures(images, [row])
        shown += [*own, png_bytes(image)]
        told += [text[0] or f"image {row}", f"the nearest reference image, {distance:.4g} away"]
    title = "Images and the reference images nearest to them"
    return samples(title, shown, told, None) if shown else ""


def _pictures(images, rows):
    rows = list(rows)
    shown = [png_bytes(images.files.read(row)) for row in rows]
    told = ["" if images.captions is None else images.captions[row] for row in rows]
    return shown, told


def _shortened(results):
    """The results without the recipe, which is long."""
    kept = dict(results)
    if kept.get("run"):
        kept["run"] = {name: one for name, one in kept["run"].items() if name != "recipe"}
    return json.dumps(kept, indent=1, sort_keys=True)
