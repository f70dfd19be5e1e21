"""Alignment over the number of steps, for MaskGIT on shapes, with and without a critic.

    python benchmarks/muse_steps.py runs/muse_shapes/base runs/muse_critic

The second run has a critic (`configs/muse/shapes_critic.py`); without it there is no such row.
Prints the table of docs/muse.md, and writes its plot where --plot says.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import numpy as np

from t2i_jax import runs
from t2i_jax.eval.alignment import alignment
from t2i_jax.eval.judge_shapes import JudgeShapes
from t2i_jax.runs.evaluation import held_out

STEPS = (2, 4, 8, 12, 24)


def main() -> None:
    """Samples, judges, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("critic", type=pathlib.Path, nargs="?")
    parser.add_argument("--images", type=int, default=400, help="held-out captions of a cell")
    parser.add_argument("--plot", type=pathlib.Path, help="a PNG file")
    told = parser.parse_args()
    rows = {
        "confidence": (told.run, {"critic": False}),
        "confidence, choice temperature 2": (told.run, {"critic": False, "choice_temperature": 2}),
        "Halton order": (told.run, {"critic": False, "order": "halton"}),
        "random order": (told.run, {"critic": False, "order": "random"}),
    }
    if told.critic is not None:
        rows["token critic"] = (told.critic, {"critic": True})
    found = {name: measured(run, options, told.images) for name, (run, options) in rows.items()}
    print("| what stays | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    for name, cells in found.items():
        print(f"| {name} | " + " | ".join(f"{100 * cell:.1f}%" for cell in cells) + " |")
    if told.plot is not None:
        plot(found, told.plot)


def measured(run: pathlib.Path, options: dict, count: int) -> list[float]:
    """The fraction of images that agree with their captions, for each number of steps."""
    system, recipe = runs.load(run), runs.load_run_recipe(run)
    captions = list(held_out(recipe)(count, ("caption",))["caption"])
    cells = []
    for steps in STEPS:
        start = time.monotonic()
        images = system.generate(
            captions, recipe.evaluation.options, steps=steps, batch_size=100, **options
        )
        cells.append(float(np.mean(alignment(images, captions, JudgeShapes())["right"])))
        took = time.monotonic() - start
        print(f"{run} {options} {steps=}: {cells[-1]:.3f} in {took:.0f} s", file=sys.stderr)
    return cells


def plot(found: dict[str, list[float]], path: pathlib.Path) -> None:
    """Alignment over steps, a line per row of the table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3), layout="constrained")
    for name, cells in found.items():
        axis.plot(STEPS, [100 * cell for cell in cells], marker="o", label=name)
    axis.set(xscale="log", xlabel="steps", ylabel="right images, %")
    axis.set_xticks(STEPS, [str(steps) for steps in STEPS])
    axis.minorticks_off()
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
