"""Muse's base model of 3 billion parameters; all else as in paper_632m.py beside it. Not yet run.

t2i compile configs/muse/paper_3b.py --topology v4:4x4x2
"""

import dataclasses
import pathlib

from t2i_jax import Recipe
from t2i_jax.models.maskgit import MUSE_3B
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The recipe of paper_632m.py with the network of 3B."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_632m.py"))
    task = dataclasses.replace(recipe.task, model=MUSE_3B.clone(dtype="bfloat16", remat="full"))
    return dataclasses.replace(recipe, task=task)
