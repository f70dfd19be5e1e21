"""A critic on the frozen base model of `tiny_muse`, so small that only the way is tested."""

import dataclasses

from t2i_jax import Recipe, TokenCritic
from tests.e2e import tiny_muse


def get_config() -> Recipe:
    """The base model with a critic, which alone is trained; give init=RUN/base."""
    muse = tiny_muse.get_config()
    base = muse.parts["base"]
    critic = TokenCritic(dim=16, depth=1, heads=2, dim_head=8, ff_mult=1)
    task = dataclasses.replace(base.task, critic=critic, trains=("critic",))
    return dataclasses.replace(base, task=task, parts={"tokenizer": muse.parts["tokenizer"]})
