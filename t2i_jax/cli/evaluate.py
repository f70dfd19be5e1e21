"""`t2i eval RUN`: evaluate a trained run again."""

from __future__ import annotations

import pathlib
from typing import Annotated

from t2i_jax.cli.arguments import Shown


def evaluate(
    run: pathlib.Path,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    step: Annotated[str | None, Shown("STEP", default="the newest")] = None,
) -> None:
    """Measure a trained run on held-out images or captions.

    Writes metrics.json and samples/heldout.png.

    Args:
        run: Folder of the run.
        overrides: Fields of the recipe to change, as evaluation.pictures=1000
        evaluation.options.guidance=2.0.
        step: The checkpoint: its step, or best, the one with the best validation metric.
    """
    from t2i_jax import paths, runs
    from t2i_jax.cluster import processes
    from t2i_jax.runs.folder import checkpoint_step
    from t2i_jax.runs.recipe import changed

    with processes.joined():
        run = paths.given("run", run)
        recipe = changed(runs.load_run_recipe(run), overrides)
        chosen = checkpoint_step(step)
        metrics = runs.evaluate(recipe, runs.load(run, step=chosen), run, chosen)
        for name, value in metrics.items() if processes.is_first() else ():
            print(f"{name}: {value:.4g}")
