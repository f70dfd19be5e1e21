"""Guidance x temperature x limit of plausibility, for Parti on three small sets.

    python benchmarks/guidance_sweep.py runs/sweep  # trains what is not there, 20 minutes
    python benchmarks/guidance_sweep.py runs/sweep shapes  # one set alone

Shapes and digits: the fraction of images that agree with their held-out captions. Drawings, a set
so small that it is learnt by heart: PSNR in dB to the drawing that the caption belongs to. Prints
the tables of docs/sampling.md, a row per guidance, a column per temperature and limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.eval.alignment import alignment
from t2i_jax.eval.evaluation import JUDGES
from t2i_jax.eval.reconstruction import psnr
from t2i_jax.quickstart.run import get_config
from t2i_jax.runs.evaluation import held_out
from t2i_jax.runs.recipe import changed, load_recipe

GUIDANCE, TEMPERATURE, LIMIT = (1.0, 1.5, 2.0, 3.0, 6.0), (0.0, 0.5, 1.0), (None, 0.1)
COLOURS = ("red", "green", "blue", "orange", "purple", "black")
THINGS = ("house", "tree", "boat", "face", "sun", "cup", "fish", "flag")


def main() -> None:
    """Trains the runs that are not there, and prints a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("sets", nargs="*", default=list(RECIPES))
    parser.add_argument("--images", type=int, default=200, help="images of a cell")
    told = parser.parse_args()
    for name in told.sets:
        place = told.workdir / name
        if (place / "metrics.json").is_file():
            system, recipe = runs.load(place), runs.load_run_recipe(place)
        else:
            recipe = RECIPES[name](told.workdir)
            system = runs.train(recipe, place)
        print(table(name, system, recipe, told.images), flush=True)


def table(name: str, system, recipe, count: int) -> str:
    """A table in Markdown, a row per guidance."""
    captions, score = measure(recipe, count)
    columns = list(itertools.product(TEMPERATURE, LIMIT))
    lines = [f"**{name}**, {len(captions)} images each\n"]
    heads = [f"T={t:g}, {'no limit' if p is None else f'limit {p:g}'}" for t, p in columns]
    lines += ["| guidance | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for guidance in GUIDANCE:
        cells = []
        for temperature, limit in columns:
            if guidance == 1 and limit is not None:
                cells.append("")  # without guidance there is no limit
                continue
            images = system.generate(
                captions, guidance=guidance, temperature=temperature, plausibility=limit,
                batch_size=100,
            )  # fmt: skip
            cells.append(score(images))
            print(f"{name} {guidance=} {temperature=} {limit=}: {cells[-1]}", file=sys.stderr)
        lines.append(f"| {guidance:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measure(recipe, count):
    """(captions, images -> what a cell says)."""
    judge = recipe.evaluation.judge
    if judge is not None:
        captions = list(held_out(recipe)(count, ("caption",))["caption"])

        def agrees(images):
            right = alignment(images, captions, JUDGES[judge]())["right"]
            return f"{100 * np.mean(right):.1f} %"

        return captions, agrees
    folder = pathlib.Path(recipe.data.source.removeprefix("folder:"))
    files = sorted(folder.glob("*.png"))[:count]
    wanted = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    captions = [file.with_suffix(".txt").read_text() for file in files]
    return captions, lambda images: f"{np.mean(np.minimum(psnr(wanted, images), 99)):.1f} dB"


def _shapes(workdir):
    return get_config()


def _digits(workdir):
    return load_recipe(pathlib.Path(__file__).parent.parent / "configs" / "parti" / "digits.py")


def _drawings(workdir):
    folder = workdir / "drawings_made"
    make_drawings(folder)
    source, recipe = f"folder:{folder}", get_config()
    overrides = [f"data.source={source}", f"tokenizer.data.source={source}", "train.steps=1200"]
    recipe = changed(recipe, overrides)
    return dataclasses.replace(recipe, evaluation=t2i.Evaluation())


RECIPES = {"shapes": _shapes, "digits": _digits, "drawings": _drawings}


def make_drawings(folder: pathlib.Path, side: int = 32) -> None:
    """A drawing of each thing in each colour, NAME.png and NAME.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour, thing in itertools.product(COLOURS, THINGS):
        page = Image.new("RGB", (4 * side, 4 * side), "white")
        draw_thing(ImageDraw.Draw(page), thing, colour, side / 8)
        page.resize((side, side), Image.Resampling.LANCZOS).save(folder / f"{colour}_{thing}.png")
        (folder / f"{colour}_{thing}.txt").write_text(f"a {colour} {thing}")


def draw_thing(pen: ImageDraw.ImageDraw, thing: str, colour: str, u: float) -> None:
    """Draws one thing on a page of 32 u x 32 u."""

    def box(*corners):
        return tuple(u * corner for corner in corners)

    if thing == "house":
        pen.rectangle(box(8, 16, 24, 28), fill=colour)
        pen.polygon(box(6, 16, 16, 6, 26, 16), fill="brown")
    elif thing == "tree":
        pen.rectangle(box(14, 18, 18, 29), fill="brown")
        pen.ellipse(box(7, 4, 25, 20), fill=colour)
    elif thing == "boat":
        pen.polygon(box(4, 20, 28, 20, 23, 27, 9, 27), fill=colour)
        pen.polygon(box(16, 4, 16, 18, 26, 18), fill="gray")
    elif thing == "face":
        pen.ellipse(box(5, 5, 27, 27), outline=colour, width=round(2 * u))
        pen.ellipse(box(11, 12, 14, 15), fill=colour)
        pen.ellipse(box(18, 12, 21, 15), fill=colour)
        pen.arc(box(10, 12, 22, 23), 20, 160, fill=colour, width=round(2 * u))
    elif thing == "sun":
        pen.ellipse(box(10, 10, 22, 22), fill=colour)
        for x, y in ((16, 2), (16, 30), (2, 16), (30, 16), (6, 6), (26, 26), (6, 26), (26, 6)):
            pen.line(box(16, 16, x, y), fill=colour, width=round(u))
    elif thing == "cup":
        pen.rectangle(box(8, 10, 21, 26), fill=colour)
        pen.ellipse(box(18, 13, 27, 22), outline=colour, width=round(2 * u))
    elif thing == "fish":
        pen.ellipse(box(4, 10, 22, 22), fill=colour)
        pen.polygon(box(20, 16, 29, 9, 29, 23), fill=colour)
    else:
        pen.line(box(8, 4, 8, 29), fill="gray", width=round(2 * u))
        pen.rectangle(box(9, 5, 26, 16), fill=colour)


if __name__ == "__main__":
    main()
