"""What a recipe refuses before anything of it runs."""

import dataclasses

import pytest

from t2i_jax.errors import UserError
from t2i_jax.runs.recipe import Evaluation
from tests.e2e import tiny, tiny_imagen


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        (tiny.get_config, {"sampler": "ddim"}, "evaluation.sampler is given for PartiTask, which samples by"),
        (tiny.get_config, {"guidance": (3.0, 1.0)}, "PartiTask has 0 stages; give one value."),
        (tiny_imagen.get_config, {"top_k": 4}, "evaluation.top_k is given for ImagenTask, which samples by"),
        (tiny_imagen.get_config, {"guidance": (3.0, 2.0, 1.0)}, "ImagenTask has 2 stages; give one value, or one for each"),
        (tiny_imagen.get_config, {"steps": (8,)}, r"evaluation.steps=\(8,\) is of length 1"),
    ],
)
def test_sampling_that_the_task_does_not_know_is_refused(recipe, options, told):
    with pytest.raises(UserError, match=told):
        dataclasses.replace(recipe(), evaluation=Evaluation(**options))


def test_one_value_for_each_stage_is_taken():
    evaluation = Evaluation(guidance=(3.0, 1.0), sampler=("ddim", "ddpm"), steps=(8, 4))
    assert dataclasses.replace(tiny_imagen.get_config(), evaluation=evaluation).evaluation == evaluation
