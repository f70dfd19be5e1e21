"""Imagen with the diffusion of Karras et al. on the embedded set `shapes`; all else as in shapes.py beside it.

    t2i train configs/imagen/shapes_edm.py
"""

import dataclasses
import pathlib

from t2i_jax import Edm, Recipe
from t2i_jax.recipe import load_recipe


def get_config() -> Recipe:
    """The recipe of shapes.py with `Edm`, sampled by Heun's method."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("shapes.py"))
    stages = tuple(dataclasses.replace(stage, noise=Edm()) for stage in recipe.task.stages)
    return dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, stages=stages),
        evaluation=dataclasses.replace(recipe.evaluation, sampler="heun", steps=16),
    )
