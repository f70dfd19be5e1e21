"""Parti on the built-in dataset `compositions`: nine tasks of composition, 32 x 32 pixels.

    t2i train configs/parti/compositions.py

The networks of the quickstart with a larger codebook, since there are eight colours, six forms and
three sizes, and longer captions. The judge tells the share of right images for each task, on 900
held-out captions.
"""

import dataclasses

from t2i_jax import DataConfig, Evaluation, PartiOptions, Recipe
from t2i_jax.quickstart.run import get_config as quickstart


def get_config() -> Recipe:
    """The tokenizer first, in WORKDIR/tokenizer, then Parti."""
    recipe, data = quickstart(), DataConfig(source="compositions", image_size=32)
    tokenizer = recipe.parts["tokenizer"]
    network = tokenizer.task.model.clone(codebook_size=2048)
    tokenizer = dataclasses.replace(
        tokenizer,
        task=dataclasses.replace(tokenizer.task, model=network),
        data=data,
        train=dataclasses.replace(tokenizer.train, steps=600),
    )
    text = dataclasses.replace(recipe.task.text, max_length=24)
    return dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, tokenizer=network, text=text),
        data=data,
        train=dataclasses.replace(recipe.train, steps=3500),
        parts={"tokenizer": tokenizer},
        evaluation=Evaluation(
            judge="compositions",
            pictures=900,
            options=PartiOptions(guidance=2.0, temperature=0.5),
        ),
    )
