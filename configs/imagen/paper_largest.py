"""Imagen's third stage at the sizes of the paper: 256 to 1024 pixels, trained on crops of 256,
batch 2048. Not yet run.

    t2i compile configs/imagen/paper_largest.py --topology v4:4x4x8

All else as in paper_base.py beside it, but for Adam in Adafactor's place.
"""

import dataclasses
import pathlib

from t2i_jax import (
    Ddpm,
    Evaluation,
    ImagenOptions,
    NullUnet,
    OptimConfig,
    Recipe,
    SRUnet1024,
    Stage,
)
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The stage alone; the smaller image of its input is made from the larger one."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_base.py"))
    unet = SRUnet1024(dtype="bfloat16", remat="full", scan_blocks=True)
    stages = (
        Stage(NullUnet(), image_size=256),
        Stage(unet, image_size=1024, crop_size=256, noise=Ddpm(schedule="linear")),
    )
    return dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, stages=stages),
        data=dataclasses.replace(recipe.data, image_size=1024),
        train=dataclasses.replace(
            recipe.train, optim=OptimConfig(learning_rate=1e-4, warmup_steps=10_000)
        ),
        evaluation=Evaluation(options=ImagenOptions(guidance=8.0)),
    )
