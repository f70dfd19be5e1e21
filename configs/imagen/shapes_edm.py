"""Imagen with the diffusion of Karras et al. on the built-in dataset `shapes`.

All else as in shapes.py beside it.

    t2i train configs/imagen/shapes_edm.py
"""

import dataclasses
import pathlib

from t2i_jax import Edm, Recipe
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The recipe of shapes.py with `Edm`, sampled by Heun's method."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("shapes.py"))
    base, larger = recipe.task.stages
    # the first stage trains at the levels where an image so small is decided; the second knows its
    # layout
    stages = (
        dataclasses.replace(base, noise=Edm(P_mean=0.8, P_std=1.3)),
        dataclasses.replace(larger, noise=Edm(P_mean=-0.4, P_std=1.3)),
    )
    options = dataclasses.replace(recipe.evaluation.options, sampler="heun", steps=16)
    return dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, stages=stages),
        evaluation=dataclasses.replace(recipe.evaluation, options=options),
    )
