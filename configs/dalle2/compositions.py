"""DALL-E 2 on the built-in dataset `compositions`: nine tasks of composition, 32 x 32 pixels.

    t2i train configs/dalle2/compositions.py

The networks of `shapes.py`, for longer captions.
"""

import dataclasses
import pathlib

import t2i_jax as t2i
from t2i_jax.runs.recipe import load_recipe

_SHAPES = pathlib.Path(__file__).with_name("shapes.py")
_WORDS = 24  # of a caption


def get_config() -> t2i.Recipe:
    """CLIP, the prior and the decoder, one after the other, each in a folder of its own."""
    recipe = load_recipe(_SHAPES)
    clip, prior, decoder = (recipe.parts[name] for name in ("clip", "prior", "decoder"))
    clip = _with(clip, model=dataclasses.replace(clip.task.model, text_seq_len=_WORDS), steps=500)
    prior = _with(prior, model=prior.task.model.clone(max_text_len=_WORDS), steps=500)
    stages = tuple(
        dataclasses.replace(stage, unet=stage.unet.clone(max_text_len=_WORDS))
        for stage in decoder.task.stages
    )
    text = dataclasses.replace(decoder.task.text, max_length=_WORDS)
    decoder = _with(decoder, stages=stages, text=text, steps=1000)
    return dataclasses.replace(
        recipe,
        data=_data(),
        parts={"clip": clip, "prior": prior, "decoder": decoder},
        evaluation=t2i.Evaluation(
            judge="compositions", pictures=900, options=recipe.evaluation.options
        ),
    )


def _with(part, steps, **task):
    """A part of `shapes.py` with other fields of its task, and no judge of its own."""
    return dataclasses.replace(
        part,
        task=dataclasses.replace(part.task, **task),
        data=_data(),
        train=dataclasses.replace(part.train, steps=steps),
        evaluation=dataclasses.replace(part.evaluation, judge=None),
    )


def _data():
    return t2i.DataConfig(source="compositions", image_size=32)
