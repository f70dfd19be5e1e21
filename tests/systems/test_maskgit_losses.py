"""MaskGIT's task, tiny: losses, what a batch holds, what is masked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config
from t2i_jax.models.maskgit import MaskGitTransformer, SelfCritic, TokenCritic
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.on_host import initialise
from t2i_jax.systems.clip.text import ClipText
from t2i_jax.systems.maskgit import losses
from t2i_jax.systems.maskgit.task import MaskGitTask
from t2i_jax.text.classes import ClassLabels
from t2i_jax.text.t5 import T5Text
from t2i_jax.text.t5_encoder import T5Encoder
from tests.systems import toy_dalle2
from tests.systems.toy_muse import (
    CRITIC,
    NETWORK,
    STORED,
    SUPERRES,
    TASK,
    batch_of,
    loss_of,
    params_of,
    tokenizer_weights,
    tokens_of,
)


def test_a_step_on_images_is_a_step_on_their_tokens():
    batch = batch_of(TASK)
    on_tokens = dataclasses.replace(TASK, stored_tokens=True)
    assert "image" in TASK.batch_spec(2) and "tokens" in on_tokens.batch_spec(2)
    tokens = tokens_of(batch["image"])
    params = params_of(TASK)
    expected = loss_of(TASK, batch, params)[0]
    found = loss_of(on_tokens, {**batch, "tokens": tokens}, params)[0]
    np.testing.assert_allclose(expected, found, rtol=1e-6)


_T5 = T5Encoder(dim=16, depth=1, heads=2, dim_head=8, mlp_dim=16, vocab_size=64)


@pytest.mark.parametrize(
    "text",
    [T5Text(None, _T5, max_length=6), ClipText(None, toy_dalle2.CLIP, max_length=6)],
    ids=["T5", "CLIP"],
)
def test_captions_of_frozen_encoders_condition_it(text):
    task = dataclasses.replace(TASK, text=text, stored_tokens=True, cond_drop_prob=0.0)
    frozen = {"text": initialise(text.init, jax.random.key(0))}
    params, batch = params_of(task), batch_of(task)
    batch["text_mask"][:] = np.arange(6) < 4
    compiled = jax.jit(task.loss)

    def loss(batch):
        return compiled(params, {}, frozen, batch, jax.random.key(3), jnp.int32(0))[0]

    first = loss(batch)
    for place, matters in ((1, True), (5, False)):  # a token, padding
        changed = batch["text"].copy()
        changed[:, place] = (changed[:, place] + 1) % 4
        assert (abs(float(loss({**batch, "text": changed}) - first)) > 1e-4) == matters


@pytest.mark.parametrize("critic", [None, CRITIC, SelfCritic()], ids=["none", "token", "self"])
def test_everything_trained_gets_a_gradient_from_its_own_loss_alone(critic):
    network = NETWORK.clone(self_cond=True)
    task = dataclasses.replace(STORED, model=network, critic=critic, self_cond_prob=1.0)
    params, batch = params_of(task), batch_of(task)
    for objective in task.objectives:

        def keyed(params, objective=objective):
            return objective.loss(params, {}, {}, batch, jax.random.key(5), jnp.int32(0))

        (_, (metrics, _)), slopes = jax.jit(jax.value_and_grad(keyed, has_aux=True))(params)
        for group, tree in slopes.items():
            still = {
                jax.tree_util.keystr(path)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
                if not np.abs(leaf).max() > 0
            }
            if group == objective.group:
                assert not still, still
            else:
                assert len(still) == len(jax.tree.leaves(tree))
    names = {"accuracy", "perplexity", "loss"} if critic is None else {"critic_loss"}
    assert names <= metrics.keys()


def test_the_first_loss_is_that_of_guessing_and_smoothing_mixes():
    params, batch = initialise(STORED.init, jax.random.key(0))[0], batch_of(STORED)
    loss, (metrics, _) = loss_of(STORED, batch, params)
    assert abs(float(loss) - np.log(16)) < 0.3
    np.testing.assert_allclose(metrics["perplexity"], np.exp(loss), rtol=1e-5)
    params = params_of(STORED)

    def smooth(share):
        return float(loss_of(dataclasses.replace(STORED, label_smoothing=share), batch, params)[0])

    whole = float(loss_of(STORED, batch, params)[0])
    assert abs(smooth(0.5) - (whole + smooth(1.0)) / 2) < 1e-5


def test_dropping_every_caption_trains_without_text_and_validation_keeps_them_all():
    task = dataclasses.replace(STORED, cond_drop_prob=1.0)
    params, batch = params_of(task), batch_of(task)
    other = {**batch, "text_embeds": batch["text_embeds"] + 1}
    np.testing.assert_array_equal(loss_of(task, batch, params)[0], loss_of(task, other, params)[0])
    validate = jax.jit(task.validate)
    rest = ({}, {}, batch, jax.random.key(0), jnp.int32(0))
    found = validate(params, *rest)
    assert {"loss", "accuracy", "perplexity"} <= found.keys()
    seen = validate(params, {}, {}, other, jax.random.key(0), jnp.int32(0))
    assert float(found["loss"]) != float(seen["loss"])


def test_how_many_tokens_are_masked():
    """r = cos(pi/2 u) has the mean 2/pi; above the least share; of those some are seen."""

    @jax.jit
    def draw(least, seen):
        return losses.draw(
            jax.random.key(0), (4000, 50, 2), least_masked=least, cond_drop_prob=0.25,
            no_mask_token_prob=seen, self_cond_prob=0.5,
        )  # fmt: skip

    draws = draw(0.0, 0.2)
    masked, shown = np.asarray(draws.masked_BN), np.asarray(draws.shown_BN)
    assert abs(masked.mean() - 2 / np.pi) < 0.01 and masked.sum(1).min() == 1
    assert (shown <= masked).all() and abs(shown.sum() / masked.sum() - 0.2) < 0.01
    assert abs(np.mean(draws.keep_B) - 0.75) < 0.03
    assert np.mean(draw(0.5, 0.0).masked_BN, axis=1).min() >= 0.5
    assert np.mean(draw(1.0, 0.0).masked_BN) == 1


def test_superres_sees_the_small_images_tokens_and_texts():
    params, batch = params_of(SUPERRES), batch_of(SUPERRES)
    assert batch["image"].shape[1:] == (16, 16, 3)
    frozen = {"tokenizer": tokenizer_weights()}
    inputs = jax.jit(SUPERRES.inputs_of)(params["maskgit"], frozen, batch)
    assert inputs.ids_BN.shape == (4, 64) and inputs.cond_ids_BM.shape == (4, 16)
    small = batch["image"].reshape(4, 8, 2, 8, 2, 3).astype(np.float32).mean((2, 4))
    np.testing.assert_array_equal(inputs.cond_ids_BM, tokens_of(np.uint8(np.round(small))))
    on_tokens = dataclasses.replace(SUPERRES, stored_tokens=True)
    stored = {"superres_tokens": inputs.ids_BN, "cond_tokens": inputs.cond_ids_BM}
    assert {name: leaf.shape for name, leaf in on_tokens.batch_spec(4).items()} == {
        "superres_tokens": (4, 64), "cond_tokens": (4, 16), "text": (4, 1), "text_mask": (4, 1)
    }  # fmt: skip
    again = on_tokens.inputs_of(params["maskgit"], {}, {**batch, **stored})
    jax.tree.map(np.testing.assert_array_equal, inputs, again)
    assert on_tokens.flops(1) < SUPERRES.flops(1)

    @jax.jit
    def told(decoder, inputs):
        draws = SUPERRES.draw(jax.random.key(0), inputs.ids_BN.shape)
        return losses.predicted(SUPERRES.network, decoder, inputs, draws)[0]

    other = inputs._replace(cond_ids_BM=np.roll(inputs.cond_ids_BM, 1, axis=1))
    there, moved = (told(params["maskgit"]["decoder"], given) for given in (inputs, other))
    assert np.abs(there - moved).max() > 1e-3  # and where they stand


def test_the_task_counts_its_work_and_survives_json():
    both = dataclasses.replace(SUPERRES, critic=CRITIC, trains=("critic",))
    assert both.flops(2) == 2 * both.flops(1) > 0
    assert dataclasses.replace(both, trains=None).flops(1) > both.flops(1)
    assert [objective.group for objective in both.objectives] == ["critic"]
    classes = (MaskGitTask, MaskGitTransformer, TokenCritic, ClassLabels, VQGanVAE, SelfCritic)
    known = {cls.__name__: cls for cls in classes}
    for task in (both, dataclasses.replace(TASK, critic=SelfCritic())):
        assert config.from_dict(config.to_dict(task), known) == task
