"""What a run shows of itself: grids while it trains, and measurements on held-out samples when it
is done.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_jax import paths
from t2i_jax.cluster import processes
from t2i_jax.data.pipeline import batches
from t2i_jax.data.source import EMBEDDED
from t2i_jax.errors import UserError
from t2i_jax.pixels import save_png
from t2i_jax.runs.ledger import image_channels
from t2i_jax.runs.recipe import Recipe
from t2i_jax.systems.base import HeldOut, System
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
    found = system.evaluate(held_out(recipe), recipe.evaluation)
    for name, sheet in found.sheets.items():
        _save(workdir / "samples" / f"{name}.png", sheet)
    if processes.is_first():
        add_metrics(workdir, dict(found.metrics))
    return found.metrics


def held_out(recipe: Recipe) -> HeldOut:
    """`(count, entries) -> samples` that training did not see, for a built-in data set.

    Else the first of the data.
    """
    if recipe.data is None:
        raise UserError("data=None of the recipe leaves nothing to evaluate on; give a DataConfig.")
    split = "heldout" if recipe.data.source in EMBEDDED else recipe.data.split
    data = dataclasses.replace(recipe.data, split=split, flip=False)
    encoder = recipe.task.text_encoder
    length = None if encoder is None else encoder.max_length

    channels = image_channels(recipe.task.batch_spec(1))

    def samples(count: int, wants: Sequence[str]) -> Mapping[str, Any]:
        return next(batches(data, count, 0, wants=wants, text_length=length, channels=channels))

    return samples


def _save(path, sheet):
    if processes.is_first():
        save_png(path, sheet)
