"""Meshes that leave devices without work of their own are refused.

Nothing runs here, a mesh has only a shape.
"""

import dataclasses
from typing import ClassVar

import pytest
from jax.sharding import AbstractMesh

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.train import state as states
from t2i_jax.train.config import TrainConfig
from tests.train.toy import ToyTask


def _check(task, shape, rules=None):
    mesh = AbstractMesh(
        tuple(shape.get(axis, 1) for axis in sharding.MESH_AXES), sharding.MESH_AXES
    )
    config = TrainConfig(mesh=shape, rules=rules)
    state = states.abstract(task, states.optimisers_of(task, config), 0.0, mesh, config.preset)
    states.check_mesh(state, task, mesh, config.preset)


@pytest.mark.parametrize("shape", [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"slice": 2, "data": 4}])
def test_a_mesh_whose_axes_all_split_something_is_taken(shape):
    _check(ToyTask(), shape)


@pytest.mark.parametrize(
    ("shape", "rules", "told"),
    [
        ({"tensor": 2}, "fsdp", "set train.rules=fsdp_tp"),
        ({"tensor": 3}, None, "tensor=3 splits no parameter of ToyTask"),
        ({"sequence": 2}, None, "ToyTask, which has no sequence that can be split"),
    ],
)
def test_a_mesh_with_devices_that_would_do_the_same_is_refused(shape, rules, told):
    with pytest.raises(UserError, match=told):
        _check(ToyTask(), shape, rules)


def test_a_sequence_is_split_where_the_mesh_divides_it():
    @dataclasses.dataclass(frozen=True)
    class OfTokens(ToyTask):
        sequence_length: ClassVar[int | None] = 6

    _check(OfTokens(), {"sequence": 2})
    with pytest.raises(UserError, match="a sequence of 6 tokens"):
        _check(OfTokens(), {"sequence": 4})
