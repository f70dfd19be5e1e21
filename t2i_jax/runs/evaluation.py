"""Evaluation of a run: grids of samples while it trains, and measurements on held-out samples when
it is done.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from t2i_jax import paths
from t2i_jax.cluster import lock, processes
from t2i_jax.data.source import has_splits
from t2i_jax.errors import UserError
from t2i_jax.eval.alignment import check_captions
from t2i_jax.eval.evaluation import JUDGES
from t2i_jax.pixels import save_png
from t2i_jax.runs import division, vocabulary
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.report import lines_of, write_report
from t2i_jax.runs.samples import Samples, held_out
from t2i_jax.runs.validation import validate
from t2i_jax.systems import batching, calls
from t2i_jax.systems.base import NoOptions, System
from t2i_jax.terminal import say
from t2i_jax.train.log import add_metrics, make_folder, make_room
from t2i_jax.train.loop import Hook
from t2i_jax.train.stored import chosen_step, last_step

_MANY = 2**31 - 1  # updates of a system whose number of updates is not known
_TRIED = 200  # captions that a judge is tried on at most


def check(recipe: Recipe) -> None:
    """Refuses what `evaluate` and the previews of a recipe would come upon when it has trained.

    Raises:
      UserError: more images than one call makes, or captions that the judge does not understand.
    """
    evaluation, task = recipe.evaluation, recipe.task
    if task.options is not NoOptions:
        for name in ("pictures", "preview", "completions"):
            wanted = getattr(evaluation, name) or None
            calls.check_count(f"evaluation.{name}", wanted, batching.MOST_IMAGES)
        task.check_sampling(evaluation.options)
    if evaluation.judge is None or recipe.data is None or "caption" not in task.samples:
        return
    check_judge(recipe, min(max(evaluation.pictures, evaluation.preview), _TRIED))


def check_judge(recipe: Recipe, count: int) -> None:
    """Tries the judge of a recipe on `count` held-out captions.

    Raises:
      UserError: it does not understand one.
    """
    judge = recipe.evaluation.judge
    assert judge is not None and recipe.data is not None
    try:
        check_captions(JUDGES[judge](), Samples(recipe)(count, ("caption",))["caption"])
    except UserError as error:
        raise UserError(
            f"evaluation.judge={judge!r} does not understand the captions of "
            f"data.source={recipe.data.source!r} ({str(error).partition('; write')[0]}); give "
            "evaluation.judge=None, or the one of this data."
        ) from None


def preview_hooks(recipe: Recipe, build_system) -> tuple[Hook, ...]:
    """A hook that draws a grid into WORKDIR/samples every `train.eval_every` steps, and logs what
    can be measured; a grid that can't be drawn costs a sentence, not the run.
    """
    every = 0 if recipe.train is None else recipe.train.eval_every
    if not every:
        return ()
    samples = held_out(recipe)

    def run(state, step, log):
        system = build_system({**state.params, **state.ema}, state.stats)
        # every process reads and samples; process 0 writes
        sheet, metrics, failed = None, {}, None
        try:
            sheet, metrics = system.preview(samples, recipe.evaluation)
        except UserError as error:  # of its samples
            failed = str(error)
        # one process without it would train on while the others still sample
        if failed := processes.first_told(failed):
            log.say(f"step {step} has no preview: {failed}")
            return
        save_sheet(log.workdir / "samples" / f"{step:07d}.png", sheet)
        log.scalars(step, metrics)

    return (Hook(every, run),)


def evaluate(
    recipe: Recipe,
    system: System,
    workdir: str | pathlib.Path,
    step: int | str | None = None,
) -> Mapping[str, float]:
    """Measures a trained run; the numbers are added to WORKDIR/metrics.json, grids written into
    WORKDIR/samples, and WORKDIR/report.html is made anew.

    The data may be others than those that it was trained on, see `Samples.is_other`.

    The validation metrics of held-out data; what else is measured is for the system to say, see its
    `evaluate`.

    Args:
      step: of the checkpoint that `system` was loaded from, as in `load`; None: the newest.

    Raises:
      UserError: `recipe.data` hold out more of what the run was trained on than training did.
    """
    workdir = paths.folder("workdir", workdir)
    if recipe.data is None:
        return {}
    # the system's task knows its parts, from which a batch may have its widths
    whole = dataclasses.replace(recipe, task=system.task)
    stored = _stored(workdir) or recipe
    trained_on = stored.data or recipe.data
    samples = held_out(whole, trained_on, division.noted(workdir))
    check(whole)
    told = _told_of(samples, recipe.data, trained_on)
    if told and processes.is_first():
        say(told)
    with lock.held(workdir):
        found = system.evaluate(samples, recipe.evaluation)
        metrics = {_named(name, samples): value for name, value in found.metrics.items()}
        metrics = {**_validation(recipe, samples, workdir, step), **metrics}
        for name, sheet in found.sheets.items():
            save_sheet(workdir / "samples" / f"{_named(name, samples)}.png", sheet)
        if processes.is_first():
            add_metrics(workdir, metrics)
            # a page tells of the run, not of what it is measured with this time
            write_report(workdir, stored, parts=folders.part_folders(workdir, recipe))
    return metrics


def _stored(workdir):
    """The recipe of the run in a folder; None where there is none."""
    try:
        return folders.load_run_recipe(workdir)
    except UserError:
        return None


def _told_of(samples, data, trained_on):
    """A sentence about the samples that a run is measured on; "" where they are its own held-out
    ones.
    """
    other = "its numbers are named other, as some of its images may have been trained on"
    if samples.changed:
        changed = f"has changed since this run was trained ({samples.changed})"
        return f"data.source={_set_shown(data)} {changed}; {other}."
    if samples.is_other:
        what = "its held-out part is measured"
        if not samples.is_held_out:
            what = other
        return (
            f"data.source={_set_shown(data)} is another set than this run was trained on "
            f"({_set_shown(trained_on)}); {what}."
        )
    if samples.is_held_out:
        return ""
    remedy = "" if data.heldout else "; a new run with data.heldout=0.05 has one"
    return (
        f"this run has no held-out part ({samples.none}), so it is measured on images that it was "
        f"trained on{remedy}."
    )


def _set_shown(data):
    return repr(data.source) + (f", split {data.split!r}," if has_splits(data.source) else "")


def _validation(recipe, samples, workdir, step):
    """The validation metrics of a run's folder; those of its last step are known where it was
    validated then. Of another set that may have been trained on the same, named other.
    """
    last = last_step(workdir)
    is_run = last is not None or (workdir / folders.EXPORT).is_file()
    is_measured = samples.is_held_out or samples.is_other
    if not is_measured or not recipe.task.objectives or not is_run:
        return {}
    is_own = samples.is_held_out and folders.load_run_recipe(workdir).data == recipe.data
    if step is None and is_own:
        known = [
            {name: value for name, value in line.items() if name.startswith("validation/")}
            for line in lines_of(workdir)
            if line["step"] == last
        ]
        if any(known):
            found = next(filter(None, reversed(known)))
            # what was not finite has no number in that file
            return {name: math.nan if value is None else value for name, value in found.items()}
    parts = folders.part_folders(workdir, recipe)
    given = {name: folders.part_in(home) for name, home in parts.items()}
    frozen = recipe.task.frozen(given)
    recipe = dataclasses.replace(recipe, task=recipe.task.with_parts(given))  # their networks
    encoder, tokenize = recipe.task.text_encoder, None
    tokenizer = encoder and vocabulary.load(workdir, encoder)
    if tokenizer is not None:
        tokenize = functools.partial(_ids, tokenizer, encoder.max_length)
    params, stats = folders.trained_arrays(workdir, step)
    made = chosen_step(workdir, step)
    made = _MANY if made is None else made
    found = validate(recipe, samples, params, stats, frozen, made, tokenize)
    if samples.is_held_out:
        return found
    return {f"{samples.name}/{name.partition('/')[2]}": value for name, value in found.items()}


def _ids(tokenizer, max_length, captions):
    return tokenizer(captions, max_length)


def _named(name, samples):
    """The name of a metric, in which "heldout" gives way to the part that was measured: only
    held-out samples are called so.
    """
    return name.replace("heldout", samples.name)


def save_sheet(path: pathlib.Path, sheet: np.ndarray) -> None:
    """Writes a grid of a run; something else that has its name or its folder's is set aside."""
    if processes.is_first():
        make_folder(path.parent)
        make_room(path)
        save_png(path, sheet)
