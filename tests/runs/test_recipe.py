"""What a recipe refuses before anything of it runs, and how it is changed and stored."""

import dataclasses
import json

import pytest

import t2i_jax as t2i
from t2i_jax.errors import UserError
from t2i_jax.runs.recipe import (
    Recipe,
    changed,
    recipe_from_dict,
    recipe_to_dict,
    upgrade,
    with_mesh,
)
from tests.e2e import tiny, tiny_imagen


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        (
            tiny.get_config,
            t2i.ImagenOptions(),
            r"options=ImagenOptions\(\.\.\.\) are those of another system; PartiTask has Part",
        ),
        (tiny_imagen.get_config, t2i.PartiOptions(), "ImagenTask has ImagenOptions"),
        (
            tiny_imagen.get_config,
            t2i.ImagenOptions(guidance=(3.0, 2.0, 1.0)),
            "has 3 values for 2 stages",
        ),
        (
            tiny_imagen.get_config,
            t2i.ImagenOptions(steps=(8,)),
            r"evaluation.options.steps=\(8,\) has 1 values",
        ),
    ],
)
def test_options_that_do_not_fit_the_task_are_refused(recipe, options, told):
    with pytest.raises(UserError, match=told):
        dataclasses.replace(recipe(), evaluation=t2i.Evaluation(options=options))


def test_one_value_for_each_stage_is_taken():
    options = t2i.ImagenOptions(guidance=(3.0, 1.0), sampler=("ddim", "heun"), steps=(8, 4))
    evaluation = t2i.Evaluation(options=options)
    assert (
        dataclasses.replace(tiny_imagen.get_config(), evaluation=evaluation).evaluation
        == evaluation
    )


def test_without_options_a_recipe_has_those_of_its_system():
    assert (
        dataclasses.replace(tiny.get_config(), evaluation=t2i.Evaluation()).evaluation.options
        == t2i.PartiOptions()
    )


def test_a_part_that_the_task_has_not_and_one_of_another_kind_are_refused():
    recipe = tiny.get_config()
    with pytest.raises(
        UserError,
        match="parts.clip is given for PartiTask, whose parts are tokenizer; leave it out",
    ):
        dataclasses.replace(recipe, parts={"clip": "runs/clip"})
    with pytest.raises(
        UserError, match="parts.tokenizer is given for ImagenTask, which has no parts"
    ):
        dataclasses.replace(tiny_imagen.get_config(), tokenizer="runs/tok")
    with pytest.raises(
        UserError, match="parts.perceptual is a Recipe; give the path of a file of weights"
    ):
        dataclasses.replace(recipe.parts["tokenizer"], parts={"perceptual": recipe})
    with pytest.raises(
        UserError, match="train=None, and a PartiTask is trained; give a TrainConfig"
    ):
        Recipe(recipe.task, recipe.data)


def test_the_former_keywords_are_parts():
    recipe = tiny.get_config()
    tokenizer = recipe.parts["tokenizer"]
    former = Recipe(
        task=recipe.task,
        data=recipe.data,
        train=recipe.train,
        tokenizer=tokenizer,
        evaluation=recipe.evaluation,
    )
    assert former == recipe
    assert dataclasses.replace(tokenizer, perceptual="vgg.pth").parts == {"perceptual": "vgg.pth"}


def test_the_former_keywords_of_an_evaluation_are_options():
    def recipe(get_config, **options):
        return dataclasses.replace(get_config(), evaluation=t2i.Evaluation(**options))

    former = recipe(tiny.get_config, judge="shapes", guidance=2.0, temperature=0.5)
    assert former.evaluation.options == t2i.PartiOptions(guidance=2.0, temperature=0.5)
    assert dataclasses.replace(former) == former
    assert recipe(tiny.get_config, options={"top_k": 4}).evaluation.options.top_k == 4
    with pytest.raises(UserError, match="evaluation.sampler is no option of a PartiTask; known"):
        recipe(tiny.get_config, sampler="ddim")
    with pytest.raises(UserError, match="evaluation has both options and guidance"):
        t2i.Evaluation(guidance=2.0, options=t2i.PartiOptions())


def test_the_name_of_a_part_stands_for_it_in_overrides():
    recipe = changed(
        tiny.get_config(),
        ["tokenizer.train.steps=7", "--tokenizer.perceptual=vgg.pth", "train.steps=9"],
    )
    assert recipe.parts["tokenizer"].parts == {"perceptual": "vgg.pth"}
    assert (recipe.train.steps, recipe.parts["tokenizer"].train.steps) == (9, 7)
    assert changed(recipe, ["tokenizer=runs/tok"]).parts == {"tokenizer": "runs/tok"}
    assert changed(recipe, ["tokenizer=None"]).parts == {}
    with pytest.raises(
        UserError, match="there is no 'tokeniser'; did you mean 'parts.tokenizer.train.steps'"
    ):
        changed(recipe, ["parts.tokeniser.train.steps=3"])
    assert with_mesh(recipe, "data=1").parts["tokenizer"].train.mesh == {"data": 1}


@pytest.mark.parametrize("module", [tiny, tiny_imagen])
def test_a_recipe_comes_back_from_json_and_the_form_of_before_too(module):
    recipe = module.get_config()
    stored = json.loads(json.dumps(recipe_to_dict(recipe)))
    assert recipe_from_dict(stored) == recipe and upgrade(stored) == stored
    before = _as_before(stored)
    assert recipe_from_dict(before) == recipe


def _as_before(stored):
    """The JSON form of a recipe as it was when parts and options had fields of their own."""
    options = {
        name: value for name, value in stored["evaluation"].pop("options").items() if name != "type"
    }
    names = ("guidance", "temperature", "top_k", "top_p", "sampler", "steps", "parallel")
    evaluation = {**stored["evaluation"], **{name: options.get(name) for name in names}}
    parts = {name: _as_before(part) for name, part in stored.pop("parts").items()}
    return {**stored, "evaluation": evaluation, "tokenizer": None, "perceptual": None, **parts}
