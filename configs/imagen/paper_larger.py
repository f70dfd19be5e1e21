"""Imagen's second stage at the sizes of the paper: 64 to 256 pixels, trained on crops of 64, batch
2048. Not yet run.

    t2i compile configs/imagen/paper_larger.py --topology v4:4x4x2

All else as in paper_base.py beside it, but for Adam in Adafactor's place.
"""

import dataclasses
import pathlib

from t2i_jax import Ddpm, Evaluation, ImagenOptions, NullUnet, OptimConfig, Recipe, SRUnet256, Stage
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The stage alone; the smaller image of its input is made from the larger one."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_base.py"))
    # what is recomputed would be gathered a third time, and the interconnect takes longest here
    unet = SRUnet256(dtype="bfloat16", scan_blocks=True)
    stages = (
        Stage(NullUnet(), image_size=64),
        Stage(unet, image_size=256, crop_size=64, noise=Ddpm(schedule="cosine")),
    )
    return dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, stages=stages),
        data=dataclasses.replace(recipe.data, image_size=256),
        train=dataclasses.replace(
            recipe.train, optim=OptimConfig(learning_rate=1e-4, warmup_steps=10_000)
        ),
        evaluation=Evaluation(options=ImagenOptions(guidance=8.0)),
    )
