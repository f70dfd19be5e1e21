"""What a run shows of itself: grids while it trains, and measurements on held-out samples when it
is done.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping

from t2i_jax import paths
from t2i_jax.cluster import processes
from t2i_jax.pixels import save_png
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.samples import held_out
from t2i_jax.systems.base import System
from t2i_jax.train.log import add_metrics
from t2i_jax.train.loop import Hook


def preview_hooks(recipe: Recipe, build_system) -> tuple[Hook, ...]:
    """A hook that draws a grid into WORKDIR/samples every `train.eval_every` steps, and logs what
    can be measured.
    """
    every = 0 if recipe.train is None else recipe.train.eval_every
    if not every:
        return ()

    def run(state, step, log):
        system = build_system({**state.params, **state.ema}, state.stats)
        # every process samples; process 0 writes
        sheet, metrics = system.preview(held_out(recipe), recipe.evaluation)
        _save(log.workdir / "samples" / f"{step:07d}.png", sheet)
        log.scalars(step, metrics)

    return (Hook(every, run),)


def evaluate(recipe: Recipe, system: System, workdir: str | pathlib.Path) -> Mapping[str, float]:
    """Measures a trained run; the numbers are added to WORKDIR/metrics.json, grids written into
    WORKDIR/samples.

    What is measured is for the system to say; see its `evaluate`.
    """
    workdir = paths.folder("workdir", workdir)
    if recipe.data is None:
        return {}
    samples = held_out(recipe)
    if not samples.is_held_out and processes.is_first():
        print(
            f"this run has no held-out part (data.heldout={recipe.data.heldout}), so it is "
            "measured on images that it was trained on; a new run with data.heldout=0.05 has one.",
            file=sys.stderr,
        )
    found = system.evaluate(samples, recipe.evaluation)
    metrics = {_named(name, samples): value for name, value in found.metrics.items()}
    for name, sheet in found.sheets.items():
        _save(workdir / "samples" / f"{_named(name, samples)}.png", sheet)
    if processes.is_first():
        add_metrics(workdir, metrics)
    return metrics


def _named(name, samples):
    """What an evaluation found, by the part on which it did: what is not held out is not called
    so.
    """
    return name.replace("heldout", samples.name)


def _save(path, sheet):
    if processes.is_first():
        save_png(path, sheet)
