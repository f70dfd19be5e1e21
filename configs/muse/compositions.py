"""MaskGIT, the base of Muse, on the built-in dataset `compositions`: nine tasks of composition,
32 x 32 pixels.

    t2i train configs/muse/compositions.py

The networks of `shapes.py` with the larger codebook of `configs/parti/compositions.py`.
"""

import dataclasses
import pathlib

from t2i_jax import DataConfig, Evaluation, Recipe
from t2i_jax.runs.recipe import load_recipe

_SHAPES = pathlib.Path(__file__).with_name("shapes.py")


def get_config() -> Recipe:
    """The tokenizer first, in WORKDIR/tokenizer, then MaskGIT."""
    muse = load_recipe(_SHAPES)
    base, tokenizer = muse.parts["base"], muse.parts["tokenizer"]
    data = DataConfig(source="compositions", image_size=32)
    network = tokenizer.task.model.clone(codebook_size=2048)
    tokenizer = dataclasses.replace(
        tokenizer,
        task=dataclasses.replace(tokenizer.task, model=network),
        data=data,
        train=dataclasses.replace(tokenizer.train, steps=600),
    )
    text = dataclasses.replace(base.task.text, max_length=24)
    return dataclasses.replace(
        base,
        task=dataclasses.replace(base.task, tokenizer=network, text=text),
        data=data,
        train=dataclasses.replace(base.train, steps=4000),
        parts={"tokenizer": tokenizer},
        evaluation=Evaluation(judge="compositions", pictures=900, options=base.evaluation.options),
    )
