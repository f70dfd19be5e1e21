"""RUN/report.html: one page that tells what a run was, what it made and what was measured.

It is a file of its own: images are inside it, and nothing is asked of a network.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_jax.cluster import processes
from t2i_jax.config import to_dict
from t2i_jax.errors import UserError, reason
from t2i_jax.files import object_in, read_regular, replacing
from t2i_jax.foreign import json_file
from t2i_jax.runs.folder import load_run_recipe
from t2i_jax.runs.plot import plot
from t2i_jax.terminal import say
from t2i_jax.train.log import make_room, metrics_of

REPORT = "report.html"
MONITORED = "evaluation.json"
"""The file that says how the metrics of generated images were measured while a run trained."""
_PREVIEWS = 6  # grids of the time of training that are shown
_SPEED = ("seconds_per_step", "images_per_second", "mfu", "input_wait", "goodput", "skipped")
_KEPT_OUT = ("seconds/", "seconds_first_step", *_SPEED)
_SHEETS = {
    "heldout": "Held-out samples",
    "training": "Samples of the training data (nothing is held out)",
    "other": "Samples of another set than the training data",
    "completed": "Inpainted: one half of each image was given",
    "sweep": "Guidance and temperature",
}
_COMMANDS, _MOST_LINES = "commands.jsonl", 2**31  # bytes of a file of lines
_PROGRAMS = {"main.py": "t2i", "": "python"}  # by the name of the file that runs
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
td + td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; image-rendering: auto; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
.sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1rem; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.samples img { image-rendering: pixelated; }
figure { margin: 0; } figcaption { font-size: .8rem; } .wrong figcaption { color: #b00020; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: #444; }
svg .title { font-size: 13px; font-weight: 600; fill: #222; }
svg .grid { stroke: #e3e3e3; } svg .best { stroke: #888; stroke-dasharray: 4 3; }
svg polyline { stroke-width: 1.5; stroke-linejoin: round; }
"""


def write_report(
    workdir: str | os.PathLike,
    recipe: Any,
    *,
    parts: Mapping[str, pathlib.Path] | None = None,
    title: str | None = None,
    before: Sequence[str] = (),
) -> bool:
    """Writes RUN/report.html from what lies in the run's folder; a disk that refuses costs a
    sentence, not the run.

    Args:
      parts: folders of the run's parts, which are shown in short. title: None: the folder's name.
      before: pieces of HTML that come first.

    Returns:
      False: it could not be written; a sentence on stderr says why.
    """
    workdir = pathlib.Path(workdir)
    if not processes.is_first():
        return True
    title = title or workdir.resolve().name
    sections = [
        _summary(workdir, recipe),
        *before,
        _sheets(workdir),
        _curves(workdir, recipe.evaluation.best),
        _monitored(workdir),
        *(_part(workdir, name, folder) for name, folder in (parts or {}).items()),
        _tables(workdir),
        _commands(workdir),
        _recipe(recipe),
    ]
    try:
        make_room(workdir / REPORT)
        with replacing(workdir / REPORT) as path:
            path.write_text(page_of(title, sections), encoding="utf-8", errors="replace")
    except OSError as error:
        say(f"{REPORT} can't be written to {str(workdir)!r} ({reason(error)}).")
        return False
    return True


def page_of(title: str, sections: Sequence[str]) -> str:
    """A page of its own, from pieces of HTML."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(sections)}</html>\n"
    )


def note_start(workdir: str | os.PathLike) -> None:
    """Adds the command of this start to WORKDIR/commands.jsonl, which the report shows."""
    import datetime
    import shlex

    program = pathlib.Path(sys.argv[0]).name
    told = {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([_PROGRAMS.get(program, program), *sys.argv[1:]]),
        "folder": os.getcwd(),
    }
    path = pathlib.Path(workdir) / _COMMANDS
    try:
        make_room(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
    except OSError:
        pass  # the log says that the disk refuses


def samples(
    title: str, images: Sequence[bytes], captions: Sequence[str], right: Sequence[bool] | None
) -> str:
    """The HTML of images (PNG files) above their captions; where a judge disagrees the caption is
    red.
    """
    cells = []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        wrong = right is not None and not right[i]
        note = " (the judge disagrees)" if wrong else ""
        told = f"<figcaption>{html.escape(caption + note)}</figcaption>"
        cells.append(
            f"<figure class='{'wrong' if wrong else 'right'}'>{_image(image, caption)}{told}"
            "</figure>"
        )
    return f"<h2>{html.escape(title)}</h2><div class='samples'>{''.join(cells)}</div>"


def _summary(workdir, recipe):
    metrics, lines = (metrics_of(workdir) or {}), lines_of(workdir)
    told = [f"A {type(recipe.task).__name__}"]
    if recipe.data is not None:
        told.append(f"trained on <code>{html.escape(recipe.data.source)}</code>")
    if lines:
        told.append(f"step {lines[-1]['step']} of {recipe.train.steps}")
    found = ", ".join(told) + "."
    best, step = metrics.get("validation/best"), metrics.get("validation/best_step")
    if isinstance(best, (int, float)) and isinstance(step, (int, float)):
        by = recipe.evaluation.best
        what = f"checkpoint by {by} has" if by else "validation metric is"
        found += (
            f" The best {what} {best:.4g}, at step {step:.0f}; <code>--step best</code> of "
            "<code>t2i sample</code>, <code>t2i export</code> and <code>t2i eval</code> takes that "
            "checkpoint."
        )
    return f"<p>{found}</p>"


def _sheets(workdir):
    folder, found = workdir / "samples", []
    for name, title in _SHEETS.items():
        if (folder / f"{name}.png").is_file():
            found.append(f"<h2>{title}</h2>{_image_file(folder / f'{name}.png', title)}")
    previews = sorted(p for p in folder.glob("*.png") if p.stem.isdecimal())
    if len(previews) > _PREVIEWS:
        last = len(previews) - 1
        previews = [previews[i * last // (_PREVIEWS - 1)] for i in range(_PREVIEWS)]
    if previews:
        cells = "".join(
            f"<figure>{_image_file(path, path.stem)}<figcaption>step {int(path.stem)}</figcaption>"
            "</figure>"
            for path in previews
        )
        found.append(f"<h2>While it trained</h2><div class='sheets'>{cells}</div>")
    return "".join(found)


def _curves(workdir, by, heading="Curves"):
    """The curves of metrics.jsonl; the best step is marked where the metric that tells it is shown.

    Args:
      by: the metric of generated images that tells it; None: the validation does, and all of its
        metrics are marked.
    """
    lines, metrics = lines_of(workdir), (metrics_of(workdir) or {})
    by_name: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                by_name.setdefault(name, []).append((line["step"], value))
    best, made = metrics.get("validation/best_step"), []
    for title, shown in _grouped(by_name):
        is_validated = any(name.startswith("validation/") for name in shown)
        tells = is_validated if by is None else f"eval/{by}" in shown
        decades = any(word in title for word in ("loss", "rate", "gradient", "perplexity"))
        made.append(plot(title, shown, marked=best if tells else None, decades=decades))
    return f"<h2>{heading}</h2><div class='plots'>{''.join(made)}</div>" if any(made) else ""


def _grouped(by_name):
    """The metrics that share a pair of axes, the loss first: a metric with its validation, and the
    learning rates, the norms of the gradients and the speed each together.
    """
    names = [
        name
        for name in by_name
        if not name.startswith((*_KEPT_OUT, "validation/", "learning_rate/", "matrix_rate/"))
        and not name.startswith("grad_norm/")
    ]
    names.sort(key=lambda name: (name != "loss", not name.startswith("loss"), name))
    for name in names:
        pair = {name: by_name[name]}
        if f"validation/{name}" in by_name:
            pair[f"validation/{name}"] = by_name[f"validation/{name}"]
        yield name, pair
    for name in by_name:
        if name.startswith("validation/") and name.removeprefix("validation/") not in by_name:
            yield name, {name: by_name[name]}
    for *prefixes, title in (
        ("learning_rate/", "matrix_rate/", "learning rate"),
        ("grad_norm/", "norm of the gradient"),
        ("images_per_second", "images per second"),
    ):
        found = {n: by_name[n] for n in by_name if n.startswith(tuple(prefixes))}
        if found:
            yield title, found


def _monitored(workdir):
    """The HTML about how the metrics of generated images were measured while the run trained."""
    try:
        told = json_file.read(workdir / MONITORED, "run", "train it again")["metrics"]
        rows = {
            f"eval/{name}": ", ".join(
                [
                    str(one.get("name", name)),
                    f"{one['n_generated']:,} images",
                    *([f"{one['n_reference']:,} real ones"] if one.get("n_reference") else []),
                ]
            )
            for name, one in told.items()
        }
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
        return ""  # there is none, or somebody edited it
    return _table("How images were measured while it trained", rows)


def _part(workdir, name, folder):
    """A part in short: its curves, its held-out sheet, and where its own page is."""
    if not (folder / "metrics.jsonl").is_file():
        return ""
    sheets = [folder / "samples" / f"{sheet}.png" for sheet in ("heldout", "training")]
    sheet = next((_image_file(path, name) for path in sheets if path.is_file()), "")
    link = ""
    if (folder / REPORT).is_file():
        place = os.path.relpath(folder / REPORT, workdir)  # an inherited part lies beside the run
        link = f"<p>Its own page is {html.escape(place)}.</p>"
    try:
        by = load_run_recipe(folder).evaluation.best
    except UserError:  # somebody edited it
        by = None
    return _curves(folder, by, f"The part {html.escape(name)}") + sheet + link


def _tables(workdir):
    metrics = metrics_of(workdir) or {}
    time = {n: v for n, v in metrics.items() if n.startswith(("seconds", "goodput"))}
    data = {n.removeprefix("data/"): v for n, v in metrics.items() if n.startswith("data/")}
    rest = {n: v for n, v in metrics.items() if n not in time and not n.startswith("data/")}
    found = _table("Metrics", rest)
    found += _table("What was left out or cut of the data", data)
    return found + _table("Where the time went", time)


def _table(title, values):
    if not values:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{_number(value)}</td></tr>"
        for name, value in sorted(values.items())
    )
    return f"<h2>{title}</h2><table>{rows}</table>"


def _number(value):
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not finite"  # null in metrics.json
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.5g}" if isinstance(value, float) and value % 1 else f"{value:.0f}"
    return html.escape(str(value))


def _commands(workdir):
    told = _json_lines(workdir / _COMMANDS)
    rows = "\n".join(f"{one.get('time', '')}  {one.get('command', '')}" for one in told)
    return f"<h2>Commands</h2><pre>{html.escape(rows)}</pre>" if rows else ""


def _recipe(recipe):
    shown = json.dumps(to_dict(recipe), indent=1)
    inside = f"<summary>all of it</summary><pre>{html.escape(shown)}</pre>"
    return f"<h2>Recipe</h2><details>{inside}</details>"


def lines_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of WORKDIR/metrics.jsonl that belong to a step."""
    found = _json_lines(workdir / "metrics.jsonl")
    return [line for line in found if isinstance(line.get("step"), int)]


def _json_lines(path):
    """The JSON objects of a file with one in each line; torn lines are left out."""
    try:
        text = read_regular(path, _MOST_LINES).decode(errors="replace")
    except (OSError, ValueError):
        return []
    return [found for line in text.split("\n") if (found := object_in(line)) is not None]


def _image_file(path, alt):
    try:
        return _image(path.read_bytes(), alt)
    except OSError:
        return ""


def _image(png: bytes, alt: str) -> str:
    return (
        f"<img alt='{html.escape(alt, quote=True)}' "
        f"src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
    )
