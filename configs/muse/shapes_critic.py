"""A token critic for the base model of `shapes.py` beside it, trained on the frozen generator as in
Lezama et al. 2022 (arXiv 2209.04439).

    t2i train configs/muse/shapes.py --workdir runs/muse_shapes
    t2i train configs/muse/shapes_critic.py init=runs/muse_shapes/base
"""

import dataclasses
import pathlib

from t2i_jax import Recipe, TokenCritic
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The recipe of the base model with a critic, which alone is trained."""
    muse = load_recipe(pathlib.Path(__file__).with_name("shapes.py"))
    base = muse.parts["base"]
    task = dataclasses.replace(
        base.task,
        critic=TokenCritic(dim=128, depth=2, heads=4, dim_head=32),
        trains=("critic",),
    )
    options = dataclasses.replace(base.evaluation.options, critic_noise=4.0)
    return dataclasses.replace(
        base,
        task=task,
        train=dataclasses.replace(base.train, steps=500),
        parts={"tokenizer": muse.parts["tokenizer"]},
        evaluation=dataclasses.replace(base.evaluation, options=options),
    )
