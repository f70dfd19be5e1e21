"""Folders that `load` reads, of systems that nobody has trained."""

import pathlib

import jax
import numpy as np

from t2i_jax import sharding
from t2i_jax.runs import folder
from t2i_jax.runs.recipe import Recipe
from t2i_jax.text.tokenizer import train_bpe


def write(recipe: Recipe, out: pathlib.Path) -> None:
    """Writes a system with its parts as `export` does; all weights are 0."""
    params, stats = jax.eval_shape(recipe.task.init, jax.random.key(0))

    def zeros(tree):
        return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), sharding.unbox(tree))

    beside = {
        name: lambda place, part=part: write(part, place) for name, part in recipe.parts.items()
    }
    if recipe.task.text_encoder is not None:
        beside[folder.TEXT_TOKENIZER] = train_bpe(["a red circle"], 60).save
    folder.write_system(out, recipe, zeros(params), zeros(stats), beside)
