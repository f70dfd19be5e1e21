"""What lies in the host's memory while a task trains is exactly what its steps do not read."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import t2i_jax as t2i
from t2i_jax import sharding
from t2i_jax.models import image_tokenizer
from t2i_jax.systems.base import Given
from t2i_jax.text.stored import StoredText
from t2i_jax.text.t5 import T5Text
from t2i_jax.text.t5_encoder import T5Encoder
from tests.systems import toy_cascade, toy_muse
from tests.systems.test_decoder import CLIP_NETWORK, FIRST, SECOND

_TOKENS = dataclasses.replace(toy_muse.TASK, stored_tokens=True)
_CRITIC = dataclasses.replace(toy_muse.TASK, critic=toy_muse.CRITIC)
_PARTI = t2i.PartiTask(
    t2i.PartiTransformer(dim=8, depth=1, heads=1, mlp_dim=8),
    StoredText(dim=6, max_length=4),
    toy_muse.TOKENIZER,
)
_CASCADE = toy_cascade.cascade_of(toy_cascade.LEAN)
_FROZEN = T5Text(None, T5Encoder(dim=8, depth=1, heads=1, dim_head=8, mlp_dim=8, vocab_size=16), 3)
_CLIP = jax.eval_shape(CLIP_NETWORK.init, jax.random.key(0))
_TOKENIZER = Given(toy_muse.TOKENIZER, sharding.unbox(image_tokenizer.abstract(toy_muse.TOKENIZER)))
_GIVEN = {
    "clip": Given(CLIP_NETWORK, {"clip": sharding.unbox(_CLIP)}),
    "tokenizer": _TOKENIZER,
    "superres_tokenizer": _TOKENIZER,
}


def _decoder(*trained, text=None):
    task = t2i.DecoderTask(stages=(FIRST, SECOND), train_stages=trained, text=text)
    return task.with_parts({"clip": _GIVEN["clip"]})


TASKS = [
    (_CASCADE, (), ()),
    (dataclasses.replace(_CASCADE, train_stages=(2,)), ("stage_1",), ()),
    (_decoder(1), ("stage_2",), ()),
    (_decoder(2), ("stage_1",), ("clip",)),
    (_decoder(2, text=_FROZEN), ("stage_1",), ("clip", "text")),
    (_decoder(1, text=_FROZEN), ("stage_2",), ()),
    (toy_muse.TASK, (), ()),
    (_TOKENS, (), ("tokenizer",)),
    (toy_muse.SUPERRES, (), ()),
    (dataclasses.replace(toy_muse.SUPERRES, stored_tokens=True), (), ("tokenizer",)),
    (
        dataclasses.replace(
            toy_muse.SUPERRES, stored_tokens=True, superres_tokenizer=toy_muse.TOKENIZER
        ),
        (),
        ("tokenizer", "superres_tokenizer"),
    ),
    (_CRITIC, (), ()),
    (dataclasses.replace(_CRITIC, trains=("critic",)), (), ()),
    (dataclasses.replace(_CRITIC, trains=("maskgit",)), ("critic",), ()),
    (_PARTI, (), ()),
    (dataclasses.replace(_PARTI, stored_tokens=True), (), ("tokenizer",)),
]


class _Read(dict):
    """A dict that notes what is read of it."""

    def __init__(self, tree):
        super().__init__(tree)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize(("task", "groups", "parts"), TASKS)
def test_what_a_step_does_not_read_is_idle_and_nothing_else(task, groups, parts):
    given = {name: part for name, part in _GIVEN.items() if getattr(task, name, None) is not None}
    frozen = sharding.unbox(task.frozen_shapes(given))
    params, stats = sharding.unbox(sharding.initial(task))
    read = {}

    def losses(params, stats, frozen, batch, key):
        trees, rest = (_Read(params), stats, _Read(frozen)), (batch, key, jnp.int32(0))
        validated = task.validate(*trees, *rest)
        found = [one.loss(*trees, *rest)[0] for one in task.objectives]
        read.update(params=trees[0].names, frozen=trees[2].names)
        return validated, found

    jax.eval_shape(losses, params, stats, frozen, task.batch_spec(2), jax.random.key(0))
    assert set(task.idle_groups) == set(groups) == set(params) - read["params"]
    assert set(task.idle_parts) & set(frozen) == set(parts) == set(frozen) - read["frozen"]
