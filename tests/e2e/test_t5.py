"""Parti on a frozen T5: trained from a folder's weights, sampled, and the same on text and tokens
stored beforehand.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from t2i_jax import runs
from t2i_jax.data.pipeline import batches
from t2i_jax.models.parti import Parti
from t2i_jax.runs.folder import write_system
from t2i_jax.text.cache import embed_captions
from t2i_jax.text.stored import StoredText
from t2i_jax.text.t5 import T5Text
from t2i_jax.train.stored import load_params
from tests.e2e import tiny, tiny_t5
from tests.e2e.command import inside, pictures

_LENGTH = 24
_PROMPTS = ["a red circle above a blue square", "a green triangle"]


def _captions(config, count):
    return next(batches(config, count, 0, wants=("caption",)))["caption"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the system, its run's folder) after two steps."""
    place, recipe = tmp_path_factory.mktemp("t5"), tiny.get_config()
    (place / "t5").mkdir()
    tiny_t5.save(place / "t5", _captions(recipe.data, 100))
    model = Parti(dim=16, depth=1, heads=2, dim_head=8)
    text = T5Text.from_directory(place / "t5", max_length=_LENGTH)
    task = dataclasses.replace(recipe.task, model=model, text=text)

    def few(recipe, **changes):
        return dataclasses.replace(
            recipe, train=dataclasses.replace(recipe.train, steps=2), **changes
        )

    recipe = few(recipe, task=task, parts={"tokenizer": few(recipe.parts["tokenizer"])})
    return runs.train(recipe, place / "run"), place / "run"


def test_it_trains_and_samples_and_t5_stays_out_of_the_checkpoint(trained):
    system, workdir = trained
    images = system.generate(_PROMPTS, seed=3)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(runs.load(workdir).generate(_PROMPTS, seed=3), images)
    _, params, _, _ = load_params(workdir)
    assert set(params) == {"parti"} and set(params["parti"]) == {"decoder"}


def test_stored_embeddings_and_tokens_give_the_same_loss(trained):
    system, _ = trained
    batch = next(batches(tiny.get_config().data, 4, 0, wants=("image", "caption")))
    text, text_mask = system.text_tokenizer(batch["caption"], _LENGTH)
    key = jax.random.key(1)
    args = system.weights, {}, system.frozen
    from_text, _ = jax.jit(system.task.loss)(
        *args, {"image": batch["image"], "text": text, "text_mask": text_mask}, key, 0
    )

    t5, encoder = system.frozen["text"], system.task.text
    rows = list(
        embed_captions(encoder, t5, system.text_tokenizer, batch["caption"], dtype="float32")
    )
    embeds = np.stack([np.pad(row, ((0, _LENGTH - len(row)), (0, 0))) for row in rows])
    tokens = jax.jit(system.task.tokens)(system.frozen, {"image": batch["image"]})
    stored = dataclasses.replace(
        system.task, text=StoredText(dim=encoder.dim, max_length=_LENGTH), stored_tokens=True
    )
    assert set(stored.batch_spec(4)) == {"tokens", "text_embeds", "text_mask"}
    batch = {"tokens": tokens, "text_embeds": embeds, "text_mask": text_mask}
    loss = jax.jit(stored.loss)
    from_stored, _ = loss(system.weights, {}, None, batch, key, 0)
    np.testing.assert_allclose(from_stored, from_text, rtol=1e-5)
    moved, _ = loss(system.weights, {}, None, {**batch, "text_embeds": embeds[::-1]}, key, 0)
    assert abs(moved - from_text) > 1e-6 * abs(from_text)  # the text is looked at


def test_a_run_with_stored_embeddings_takes_captions_with_the_t5_that_made_them(trained, tmp_path):
    system, workdir = trained
    stored = StoredText(dim=system.task.text.dim, max_length=_LENGTH)
    recipe = runs.load_run_recipe(workdir)
    recipe = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, text=stored))
    part = {"tokenizer": lambda folder: shutil.copytree(workdir / "tokenizer", folder)}
    write_system(tmp_path / "run", recipe, system.weights, {}, part)
    t5, out = ("--t5", workdir.parent / "t5"), ("--count", 1, "--out", tmp_path / "out")
    inside("sample", tmp_path / "run", *_PROMPTS, *t5, *out, "--seed", 3)
    expected = system.generate(_PROMPTS, seed=3)
    for i, image in enumerate(pictures(tmp_path / "out").values()):
        np.testing.assert_array_equal(image, expected[i])
    done = inside("sample", tmp_path / "run", *_PROMPTS, *out, status=2)
    assert "prompts: this run needs stored text embeddings" in done.stderr
    done = inside("sample", tmp_path / "run", *t5, *out, status=2)
    assert "captions are missing" in done.stderr
