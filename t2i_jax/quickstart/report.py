"""The page that a finished run leaves: its figures, loss curves, reconstructions, and samples
beside their captions.
"""

from __future__ import annotations

import base64
import html
import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from t2i_jax.eval.grid import grid
from t2i_jax.pixels import png_bytes

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
h1, h2 { line-height: 1.2; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; }
img { image-rendering: pixelated; max-width: 100%; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .8rem; } .wrong figcaption { color: #b00020; }
"""


def write_report(path: str | pathlib.Path, title: str, sections: Sequence[str]) -> None:
    """Writes one self-contained HTML page.

    A section is a piece of HTML from the functions below.
    """
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(sections)}</html>\n"
    )
    pathlib.Path(path).write_text(page, encoding="utf-8")


def figures(title: str, values: Mapping[str, float]) -> str:
    """A table of named numbers."""
    rows = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{v:.4g}</td></tr>" for k, v in sorted(values.items())
    )
    return f"<h2>{html.escape(title)}</h2><table>{rows}</table>"


def curves(title: str, metrics_jsonl: pathlib.Path, names: Sequence[str]) -> str:
    """A plot per named metric over the steps, read from a run's metrics.jsonl.

    Names that never occur are left out.
    """
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics_jsonl.read_text().splitlines() if line.strip()]
    names = [name for name in names if any(name in row for row in rows)]
    if not names:
        return ""
    figure = Figure(figsize=(3.6 * len(names), 2.8), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1, title=name, xlabel="step")
        axes.plot(
            [r["step"] for r in rows if name in r],
            [r[name] for r in rows if name in r],
            linewidth=1,
        )
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f"<h2>{html.escape(title)}</h2>{_image(buffer.getvalue(), title)}"


def reconstructions(title: str, images: np.ndarray, again: np.ndarray) -> str:
    """Originals above what the tokenizer makes of them; NHWC uint8."""
    sheet = grid(np.concatenate([images, again]), len(images), 96)
    return (
        f"<h2>{html.escape(title)}</h2><p>Above: the image. Below: through the tokens and back.</p>"
        + _image(png_bytes(sheet), title)
    )


def samples(
    title: str, images: np.ndarray, captions: Sequence[str], right: np.ndarray | None
) -> str:
    """Generated images beside their captions.

    Where a judge disagrees the caption is red and says so.
    """
    cells = []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        wrong = right is not None and not right[i]
        note = " (the judge disagrees)" if wrong else ""
        image_tag = _image(png_bytes(grid(image[None], 1, 128)), caption)
        told = f"<figcaption>{html.escape(caption + note)}</figcaption>"
        cells.append(f"<figure class='{'wrong' if wrong else 'right'}'>{image_tag}{told}</figure>")
    return f"<h2>{html.escape(title)}</h2><div class='samples'>{''.join(cells)}</div>"


def _image(png: bytes, alt: str) -> str:
    return (
        f"<img alt='{html.escape(alt, quote=True)}' "
        f"src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
    )
