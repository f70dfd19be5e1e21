"""`t2i eval RUN`: judge a trained run again."""

from __future__ import annotations

import pathlib
from typing import Annotated

import tyro


def evaluate(
    run: Annotated[pathlib.Path, tyro.conf.Positional],
    overrides: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
) -> None:
    """Measure a trained run on held-out pictures or captions; writes metrics.json and samples/heldout.png.

    Args:
        run: Folder of the run.
        overrides: Fields of the recipe to change, as evaluation.pictures=1000 evaluation.guidance=2.0.
    """
    from t2i_jax import runs
    from t2i_jax.cluster import processes
    from t2i_jax.config import override
    from t2i_jax.runs import evaluate as previews

    with processes.joined():
        recipe = override(runs.load_run_recipe(run), overrides)
        figures = previews.evaluate(recipe, runs.load(run), run)
        for name, value in figures.items() if processes.is_first() else ():
            print(f"{name}: {value:.4g}")
