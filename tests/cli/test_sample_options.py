"""The options of `t2i sample`: what a user gives beside what the recipe has."""

import dataclasses

import pytest

from t2i_jax import runs
from t2i_jax.cli import sample
from t2i_jax.errors import UserError
from t2i_jax.systems.dalle2.task import DALLE2Task
from tests.e2e import tiny_imagen


@pytest.fixture
def chosen(monkeypatch):
    """From a recipe and words of a command line to the options that are sampled with."""
    found = []
    monkeypatch.setattr(sample, "_sample", lambda common, options, inputs: found.append(options))

    def options_of(recipe, options, *words):
        evaluation = dataclasses.replace(recipe.evaluation, options=options)
        recipe = dataclasses.replace(recipe, evaluation=evaluation)
        monkeypatch.setattr(runs, "load_run_recipe", lambda run: recipe)
        sample.command(["run", "a red circle", *words])
        return found.pop()

    return options_of


@pytest.mark.parametrize("prefix", ["", "prior_"])
@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("", 24),
        ("--{}sampler heun", None),
        ("--{}sampler heun --{}steps 24", 24),
        ("--{}steps=24 --{}sampler=heun", 24),
        ("--{}sampler heun --{}steps 12", 12),
        ("--{}sampler dpm_solver", 24),
    ],
)
def test_steps_that_are_given_count_also_where_they_are_the_recipes(chosen, prefix, words, steps):
    of_recipe = {f"{prefix}sampler": "dpm_solver", f"{prefix}steps": 24}
    recipe = runs.Recipe(DALLE2Task()) if prefix else tiny_imagen.get_config()
    words = words.replace("{}", prefix.replace("_", "-")).split()
    made = chosen(recipe, recipe.task.options(**of_recipe), *words)
    assert getattr(made, f"{prefix}steps") == steps


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "--sampler ddim circle",
            "'circle' is not known; known: ancestral, ddim, dpm_solver, heun",
        ),
        ("--sampler ddim heun circle", "sampler='circle' is not known; known: "),
        ("--sampler ddim ddpm", "sampler='ddpm' is not known; did you mean 'ddim'"),
    ],
)
def test_a_caption_that_an_option_has_taken_is_told_where_to_stand(monkeypatch, words, told):
    """A word may be a further sampler; captions that are given leave no doubt."""
    recipe = tiny_imagen.get_config()
    monkeypatch.setattr(runs, "load_run_recipe", lambda run: recipe)
    with pytest.raises(UserError) as error:
        sample.command(["run", *words.split()])
    assert told in str(error.value)
    assert str(error.value).endswith("; a caption stands right after RUN, or after --.")
    for more in (["run", "a red circle", *words.split()], ["run", "--sampler", "circle"]):
        with pytest.raises(UserError, match="is not known") as error:
            sample.command(more)
        assert "caption" not in str(error.value)
