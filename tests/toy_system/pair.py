"""A task that trains nothing of its own: it joins the mean colour and a toy, which inherits the
mean from it.
"""

import dataclasses
from typing import ClassVar

import t2i_jax as t2i
from t2i_jax.systems.base import Part, SystemTask
from tests.toy_system import recipe as toy
from tests.toy_system.mean_colour import MeanColourTask
from tests.toy_system.task import ToyTask


@dataclasses.dataclass(frozen=True)
class PairTask(SystemTask):
    """The mean colour and the toy."""

    parts: ClassVar = {"mean": Part(MeanColourTask, "mean"), "toy": Part(ToyTask, "toy")}
    mean: object = None
    toy: object = None
    objectives = ()
    ema_groups = ()

    def system(self, params, stats, parts, frozen, text_tokenizer):
        """The trained toy."""
        return parts["toy"].system


def get_config() -> t2i.Recipe:
    """Its two parts from the recipe of the toy."""
    recipe = toy.get_config()
    mean = recipe.parts["mean"]
    alone = dataclasses.replace(recipe, parts={})
    return t2i.Recipe(task=PairTask(), parts={"mean": mean, "toy": alone})
