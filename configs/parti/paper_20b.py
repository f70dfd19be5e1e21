"""Parti 20B at the sizes of the paper; all else as in paper_350m.py beside it. Not yet run.

t2i compile configs/parti/paper_20b.py --topology v5p:8x8x8
"""

import dataclasses
import pathlib

from t2i_jax import Recipe
from t2i_jax.models.parti_transformer import PARTI_20B
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The recipe of paper_350m.py with the networks of 20B, split over more devices."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_350m.py"))
    text, decoder = PARTI_20B
    task = dataclasses.replace(
        recipe.task,
        model=decoder.clone(dtype="bfloat16", remat="full"),
        text=dataclasses.replace(text, dtype="bfloat16", remat="full"),
    )
    train = dataclasses.replace(recipe.train, mesh={"data": -1, "fsdp": 128})
    return dataclasses.replace(recipe, task=task, train=train)
