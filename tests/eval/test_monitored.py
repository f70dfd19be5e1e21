"""The names of what is measured while a run trains, and what a recipe may say of it."""

import dataclasses
import json

import pytest

import t2i_jax as t2i
from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.eval import monitored
from t2i_jax.eval.monitored import Monitored, parse
from t2i_jax.runs.recipe import recipe_from_dict, recipe_to_dict
from t2i_jax.runs.scoring.metrics import METRICS
from t2i_jax.runs.scoring.networks import Weights
from tests.e2e import tiny, tiny_imagen
from tests.toy_system import recipe as toy

_GIVEN = {"every": 500, "metrics": ("judge", "fid_2k", "clip"), "judge": "shapes"}


def test_a_name_is_a_metric_and_a_number_of_images():
    assert parse("fid_2k") == Monitored("fid_2k", "fid", 2000)
    assert parse("clip_fid_500") == Monitored("clip_fid_500", "clip_fid", 500)
    assert parse("clip") == Monitored("clip", "clip", None)
    assert parse("judge_1k").count == 1000 and not parse("judge").compares
    assert parse("kid_50").compares and parse("cmmd_50").compares


def test_names_are_those_of_the_scoring():
    asked = {*monitored.COMPARING, *monitored.ALIGNING} - {"judge"}
    assert asked <= set(METRICS)
    assert all(METRICS[name].needs_reference == (name in monitored.COMPARING) for name in asked)
    assert all(METRICS[name].needs_captions == (name in monitored.ALIGNING) for name in asked)
    of_tokenizers = ["alex", "vgg"]  # LPIPS
    assert list(config.fields_of(Weights)) == [*monitored.NETWORKS, *of_tokenizers]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metrics": ("fidd_2k",)}, "has 'fidd_2k', .*; did you mean 'fid_2k'"),
        ({"metrics": ("fid",)}, "depends on how many images .* as fid_2k"),
        ({"metrics": ("kid_1",)}, "at least 2, as kid_2k"),
        ({"metrics": ("clip_0",)}, "of no image; give 1 or more"),
        ({"metrics": ("clip", "fid_9", "clip")}, "has 'clip' twice"),
        ({"metrics": "clip"}, r"is a string; give a tuple such as \('clip',\)"),
        ({"every": 0}, "evaluation.every=0 is below 1; give steps such as 500"),
        ({"every": -5}, "evaluation.every=-5 is below 1"),
        ({"every": None}, "needs every, the steps between two, such as 500; give both"),
        (
            {"metrics": ()},
            r"evaluation.every=500 needs metrics, as \('clip',\); give",
        ),
        ({"judge": None}, "has 'judge', and judge is None"),
        ({"weights": {"incepton": "x"}}, "names 'incepton', .*; did you mean 'inception'"),
        ({"best": "fid_500"}, "evaluation.best='fid_500' is none of evaluation.metrics"),
        ({"mode": "cleann"}, "evaluation.mode='cleann' is not known; did you mean 'clean'"),
        ({"metrics": ("clip",), "reference": "x"}, "compared with by none of"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        t2i.Evaluation(**{**_GIVEN, **changes})


def test_a_recipe_of_a_system_that_makes_no_images_is_refused():
    evaluation = t2i.Evaluation(**{**_GIVEN, "judge": None, "metrics": ("fid_2k",)})
    part = tiny.get_config().parts["tokenizer"]
    with pytest.raises(UserError, match="of generated images, and a TokenizerTask generates none"):
        dataclasses.replace(part, evaluation=evaluation)
    joined = t2i.Recipe(task=t2i.MuseTask())
    with pytest.raises(UserError, match="of a MuseTask, which trains nothing itself"):
        dataclasses.replace(joined, evaluation=evaluation)
    plain = dataclasses.replace(tiny_imagen.get_config().task, text=None)
    told = t2i.Evaluation(every=5, metrics=("clip",))
    with pytest.raises(UserError, match="has 'clip', .* and this ImagenTask reads none"):
        dataclasses.replace(part, task=plain, parts={}, evaluation=told)


def test_it_is_stored_and_recipes_of_before_have_none():
    recipe = toy.get_config()
    asking = dataclasses.replace(
        recipe,
        evaluation=dataclasses.replace(
            recipe.evaluation, every=3, metrics=("fid_4",), weights={"inception": "a.pth"}
        ),
    )
    stored = json.loads(json.dumps(recipe_to_dict(asking)))
    assert recipe_from_dict(stored) == asking
    for name in ("every", "metrics", "reference", "mode", "weights", "best"):
        del stored["evaluation"][name]
    assert recipe_from_dict(stored) == recipe and recipe.evaluation.every is None
