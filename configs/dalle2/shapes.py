"""DALL-E 2 on the built-in dataset `shapes`: CLIP, the prior and a decoder of 32 pixels, one after
the other.

    t2i train configs/dalle2/shapes.py
"""

import dataclasses
import pathlib

import t2i_jax as t2i
from t2i_jax.runs.recipe import load_recipe

_HERE = pathlib.Path(__file__).resolve().parent


def get_config() -> t2i.Recipe:
    """Three parts, each in a folder of its own; the prior and the decoder inherit CLIP."""
    clip = load_recipe(_HERE.parent / "clip" / "shapes.py")
    decoder = dataclasses.replace(load_recipe(_HERE / "decoder_shapes.py"), parts={})
    options = t2i.DALLE2Options(guidance=2.0)
    return t2i.Recipe(
        task=t2i.DALLE2Task(),
        data=t2i.DataConfig(source="shapes", image_size=32),
        parts={"clip": clip, "prior": _prior(), "decoder": decoder},
        evaluation=t2i.Evaluation(judge="shapes", pictures=400, options=options),
    )


def _prior():
    network = t2i.DiffusionPriorNetwork(dim=96, depth=4, dim_head=32, heads=3, max_text_len=16)
    return t2i.Recipe(
        task=t2i.PriorTask(network),
        data=t2i.DataConfig(source="shapes", image_size=32),
        train=t2i.TrainConfig(
            steps=800,
            batch_size=128,
            ema_decay=0.99,
            optim=t2i.OptimConfig(
                name="muon",
                learning_rate=2e-3,
                warmup_steps=50,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=0.03,
            ),
        ),
        evaluation=t2i.Evaluation(pictures=200, options=t2i.PriorOptions(steps=16)),
    )
