"""What the trainer promises holds for MaskGIT: exact resume, the guard against NaN, bfloat16, a
critic trained afterwards.
"""

import dataclasses
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.models.maskgit_bert import MaskGitBert
from t2i_jax.text.stored import StoredText
from t2i_jax.train.loop import Hook, Preempted, TrainConfig, fit
from t2i_jax.train.stored import load_params
from tests.systems.toy_muse import (
    CRITIC,
    NETWORK,
    SUPERRES,
    TASK,
    batch_of,
    params_of,
    tokenizer_weights,
)
from tests.train.toy import ToyBatches

_CONFIG = TrainConfig(steps=4, batch_size=4, log_every=1, save_every=2, ema_decay=0.9)
_TASK = dataclasses.replace(
    TASK,
    model=NETWORK.clone(self_cond=True),
    critic=CRITIC,
    stored_tokens=True,
    text=StoredText(6, 3),
)


class Batches(ToyBatches):
    """Batches that depend only on their number; the text of batch `poison` holds a NaN."""

    def __init__(self, task, poison=()):
        super().__init__(4, poison)
        self.task = task

    def __next__(self):
        batch = batch_of(self.task, 4)
        batch["tokens"] = (batch["tokens"] + self.number) % 16
        if self.number in self.poison:
            batch["text_embeds"] = batch["text_embeds"] * np.float32("nan")
        self.number += 1
        return batch


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run with a NaN in its second batch, and its last state."""
    folder = tmp_path_factory.mktemp("maskgit") / "run"
    return folder, fit(_TASK, Batches(_TASK, (1,)), _CONFIG, folder)


def test_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run_and_nan_is_skipped(
    uninterrupted, tmp_path
):
    _, whole = uninterrupted
    assert list(whole.skipped) == [1, 0] and set(whole.params) == {"maskgit", "critic"}
    stop = Hook(
        1, lambda state, step, log: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None
    )
    with pytest.raises(Preempted, match="after step 3"):
        fit(_TASK, Batches(_TASK, (1,)), _CONFIG, tmp_path / "stopped", hooks=(stop,))
    fit(_TASK, Batches(_TASK, (1,)), _CONFIG, tmp_path / "stopped")
    _, params, ema, _ = load_params(tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, (params, ema), (whole.params, whole.ema))


def test_a_critic_is_trained_on_a_generator_that_stays(uninterrupted, tmp_path):
    folder, before = uninterrupted
    run = shutil.copytree(folder, tmp_path / "run")
    plain = dataclasses.replace(_TASK, trains=("critic",))
    longer = dataclasses.replace(_CONFIG, steps=6)
    after = fit(plain, Batches(plain), longer, run, allowed=("task.trains",))
    jax.tree.map(np.testing.assert_array_equal, before.params["maskgit"], after.params["maskgit"])
    both = jax.device_get((before.params, after.params))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *both)
    assert max(jax.tree.leaves(moved["critic"])) > 0


def test_bfloat16_follows_float32():
    """Parameters and losses stay float32; 8 bits of the activations leave losses within 2%."""
    half = dataclasses.replace(_TASK, model=NETWORK.clone(dtype="bfloat16"), critic=None)
    whole, params, batch = dataclasses.replace(half, model=NETWORK), params_of(half), batch_of(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def slopes(task):
        def loss(params):
            return task.loss(params, {}, {}, batch, jax.random.key(1), jnp.int32(0))[0]

        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))

    (exact, right), (close, near) = slopes(whole), slopes(half)
    assert close.dtype == jnp.float32 and close != exact
    assert float(close) == pytest.approx(float(exact), rel=2e-2)

    def norm(tree):
        return np.sqrt(sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(tree)))

    assert norm(jax.tree.map(np.subtract, near, right)) < 0.25 * norm(right)


def test_multi_axis_super_resolution_learns_from_small_images():
    """A step's gradient reaches the layers over the small image's tokens, and lowers the loss."""
    task = dataclasses.replace(SUPERRES, model=NETWORK.clone(multi_axis=4, cond_depth=1))
    batch, frozen = batch_of(task, 2), {"tokenizer": tokenizer_weights()}

    def loss(params):
        return task.loss(params, {}, frozen, batch, jax.random.key(1), jnp.int32(0))[0]

    step = jax.jit(jax.value_and_grad(loss))
    before, slope = jax.device_get(step(params := params_of(task)))
    cond = slope["maskgit"]["decoder"]["cond_layers"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(cond))
    after, _ = step(jax.tree.map(lambda p, g: p - 0.02 * g, params, slope))
    assert float(after) < float(before)


def test_the_published_network_learns_with_classes_and_enlarges_nothing():
    """A step lowers the loss, and its gradient reaches the classes; a dropped class is not seen."""
    bert = MaskGitBert(dim=8, depth=1, heads=2, mlp_dim=16)
    task = dataclasses.replace(TASK, model=bert, stored_tokens=True, cond_drop_prob=0.0)
    batch, params = batch_of(task, 4), params_of(task)

    def loss(params):
        return task.loss(params, {}, {}, batch, jax.random.key(1), jnp.int32(0))[0]

    step = jax.jit(jax.value_and_grad(loss))
    before, slope = jax.device_get(step(params))
    assert np.abs(slope["maskgit"]["text"]["embedding"]).max() > 0
    after, _ = step(jax.tree.map(lambda p, g: p - 0.02 * g, params, slope))
    assert float(after) < float(before)

    @jax.jit
    def logits(decoder, ids, scale):
        own = {"params": decoder}
        classes = scale * jnp.ones((2, 1, 8)) * jnp.arange(8)
        seen, keep = jnp.ones((2, 1), bool), jnp.array([True, False])
        return task.network.apply(own, ids, classes, seen, keep)

    given = params["maskgit"]["decoder"], batch["tokens"][:2]
    moved = np.abs(logits(*given, 1.0) - logits(*given, -1.0)).max((1, 2))
    assert moved[0] > 1e-3 and moved[1] == 0
    with pytest.raises(UserError, match="model=MaskGitBert takes no cond_fmap_size"):
        dataclasses.replace(SUPERRES, model=bert)
