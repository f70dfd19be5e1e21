"""Imagen on the built-in dataset `compositions`: nine tasks of composition, 32 x 32 pixels.

    t2i train configs/imagen/compositions.py

The cascade of `shapes.py`, for longer captions.
"""

import dataclasses
import pathlib

from t2i_jax import DataConfig, Evaluation, Recipe
from t2i_jax.runs.recipe import load_recipe

_SHAPES = pathlib.Path(__file__).with_name("shapes.py")


def get_config() -> Recipe:
    """Both stages in one run; the judge tells the share of right images for each task."""
    recipe = load_recipe(_SHAPES)
    text = dataclasses.replace(recipe.task.text, max_length=24)
    stages = tuple(
        dataclasses.replace(stage, unet=stage.unet.clone(max_text_len=text.max_length))
        for stage in recipe.task.stages
    )
    return dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, stages=stages, text=text),
        data=DataConfig(source="compositions", image_size=32),
        train=dataclasses.replace(recipe.train, steps=1800),
        evaluation=Evaluation(
            judge="compositions", pictures=900, options=recipe.evaluation.options
        ),
    )
