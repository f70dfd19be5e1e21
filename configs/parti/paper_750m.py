"""Parti 750M at the sizes of the paper; all else as in paper_350m.py beside it. Not yet run.

t2i compile configs/parti/paper_750m.py --topology v4:8x8x4
"""

import dataclasses
import pathlib

from t2i_jax import Recipe
from t2i_jax.models.parti_transformer import PARTI_750M
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The recipe of paper_350m.py with the networks of 750M."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_350m.py"))
    text, decoder = PARTI_750M
    task = dataclasses.replace(
        recipe.task,
        model=decoder.clone(dtype="bfloat16", remat="attention"),
        text=dataclasses.replace(text, dtype="bfloat16", remat="full"),
    )
    return dataclasses.replace(recipe, task=task)
