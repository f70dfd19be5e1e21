"""DALL-E 2's first upsampler at the sizes of the paper: 64 to 256 pixels, 320 channels, without
attention, trained on crops of 64, batch 1024. Not yet run.

    t2i compile configs/dalle2/paper_larger.py --topology v4:4x4x4

It has no conditions but the smaller image. All else as in paper_decoder.py beside it.
"""

import dataclasses
import pathlib

from t2i_jax import (
    DecoderOptions,
    DecoderStage,
    DecoderTask,
    DecoderUnet,
    DiscreteDdpm,
    Evaluation,
    NullUnet,
    OptimConfig,
    Recipe,
)
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The stage alone; the smaller image of its input is made from the larger one."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_decoder.py"))
    unet = DecoderUnet(
        dim=320,
        dim_mults=(1, 2, 3, 4),
        num_resnet_blocks=3,
        cross_attn=False,
        attend_at_middle=False,
        init_cross_embed=False,
        dtype="bfloat16",
        remat="full",
    )
    stages = (
        DecoderStage(NullUnet(), image_size=64),
        DecoderStage(
            unet,
            image_size=256,
            crop_size=64,
            noise=DiscreteDdpm(1000, schedule="cosine"),
            resize="area",
            sampler="ddim",
            steps=27,
        ),
    )
    return dataclasses.replace(
        recipe,
        task=DecoderTask(stages),
        data=dataclasses.replace(recipe.data, image_size=256),
        train=dataclasses.replace(
            recipe.train,
            steps=1_000_000,
            batch_size=1024,
            optim=OptimConfig(learning_rate=1.2e-4, b2=0.999, weight_decay=0.0),
        ),
        evaluation=Evaluation(options=DecoderOptions(guidance=1.0)),
    )
