"""`t2i report RUN`: the page of a run, made anew."""

from __future__ import annotations

import pathlib
import sys

from t2i_jax.errors import UserError
from t2i_jax.words import named


def report(run: pathlib.Path, sweep: bool = False) -> None:
    """Write RUN/report.html: curves, grids with captions, metrics, the recipe and the commands.

    Training and t2i eval write it too.

    Args:
        run: Folder of the run.
        sweep: Also sample held-out captions over guidance and temperature, for systems with both.
    """
    from t2i_jax import paths, runs
    from t2i_jax.runs.evaluation import save_sheet
    from t2i_jax.runs.folder import part_folders
    from t2i_jax.runs.report import REPORT, write_report
    from t2i_jax.runs.samples import held_out

    run = paths.given("run", run)
    recipe = runs.load_run_recipe(run)
    if sweep:
        paths.folder("run", run)  # where nothing can be written is refused before images are made
        system = runs.load(run)
        sheets = system.sweep(held_out(recipe), recipe.evaluation)
        if not sheets:
            raise UserError(
                f"sweep is given for run={paths.shown(run)}, and {named(system)} has no guidance "
                "and temperature for captions; leave --sweep out."
            )
        for name, sheet in sheets.items():
            save_sheet(run / "samples" / f"{name}.png", sheet)
    if not write_report(run, recipe, parts=part_folders(run, recipe)):
        sys.exit(UserError.status)
    print(f"written: {run / REPORT}")
