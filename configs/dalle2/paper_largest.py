"""DALL-E 2's second upsampler at the sizes of the paper: 256 to 1024 pixels, 192 channels,
multiples 1-1-2-2-4-4, two blocks, without attention, trained on crops of 256, batch 512.
Not yet run.

    t2i compile configs/dalle2/paper_largest.py --topology v4:4x4x4

All else as in paper_larger.py beside it.
"""

import dataclasses
import pathlib

from t2i_jax import (
    DecoderStage,
    DecoderTask,
    DiscreteDdpm,
    NullUnet,
    OptimConfig,
    Recipe,
)
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The stage alone."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_larger.py"))
    larger = recipe.task.stages[1]
    stages = (
        DecoderStage(NullUnet(), image_size=256),
        dataclasses.replace(
            larger,
            unet=larger.unet.clone(dim=192, dim_mults=(1, 1, 2, 2, 4, 4), num_resnet_blocks=2),
            image_size=1024,
            crop_size=256,
            noise=DiscreteDdpm(1000, schedule="linear"),
            steps=15,
        ),
    )
    return dataclasses.replace(
        recipe,
        task=DecoderTask(stages),
        data=dataclasses.replace(recipe.data, image_size=1024),
        train=dataclasses.replace(
            recipe.train,
            batch_size=512,
            optim=OptimConfig(learning_rate=1e-4, b2=0.999, weight_decay=0.0),
        ),
    )
