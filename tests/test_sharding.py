"""Meshes and partitions, resolved from shapes alone.

Programs on eight devices run in train/test_eight_devices.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from t2i_jax import sharding
from t2i_jax.errors import UserError

_MESH = AbstractMesh((1, 2, 2, 1, 2), sharding.MESH_AXES)  # has a shape, needs no devices


@pytest.mark.parametrize(
    ("rules", "logical", "shape", "spec"),
    [
        ("dp", ("embed", "mlp"), (8, 16), (None, None)),
        ("fsdp", ("embed", "mlp"), (8, 16), ("fsdp", None)),
        ("fsdp_tp", ("embed", "mlp"), (8, 16), ("fsdp", "tensor")),
        # odd widths are replicated, not refused
        ("fsdp_tp", ("embed", "mlp"), (7, 16), (None, "tensor")),
        ("fsdp_tp", ("embed", "embed"), (8, 8), ("fsdp", None)),  # a mesh axis is used once
        ("fsdp_tp", (None, "layers", "kv"), (8, 8, 8), (None, None, None)),
        ("fsdp", (), (), ()),
    ],
)
def test_a_partition_follows_the_rules_where_the_mesh_divides(rules, logical, shape, spec):
    assert sharding.resolve(logical, shape, _MESH, rules) == PartitionSpec(*spec)


def test_every_rule_names_axes_of_the_mesh():
    for rules in sharding.RULES.values():
        assert {axis for axes in rules.values() for axis in axes} <= set(sharding.MESH_AXES)


@pytest.mark.parametrize("rules", sharding.RULES)
def test_a_convolution_is_split_over_one_channel_axis_at_most(rules):
    """Split over both, gradients came out wrong; train/eight_layouts.py has the case."""
    spec = sharding.resolve((None, None, "conv_in", "conv_out"), (4, 4, 8, 16), _MESH, rules)
    assert sum(axis is not None for axis in spec) <= 1


def test_unknown_rules_are_refused():
    with pytest.raises(UserError, match="did you mean 'fsdp'"):
        sharding.resolve(("embed",), (8,), _MESH, "fsd")


@pytest.mark.parametrize("shape", [None, {}, {"data": 1}, {"fsdp": -1}, {"fsdp": 1, "tensor": -1}])
def test_a_mesh_over_one_device_has_every_axis(shape):
    mesh = sharding.make_mesh(shape, jax.devices()[:1])
    assert mesh.axis_names == sharding.MESH_AXES and mesh.size == 1


@pytest.mark.parametrize(
    "shape",
    [{"data": 2}, {"data": 0}, {"data": -1, "fsdp": -1}, {"data": -1, "fsdp": 3}, {"data": -2}],
)
def test_a_mesh_that_does_not_fit_is_refused_with_a_remedy(shape):
    with pytest.raises(UserError, match="does not fit 1 device.*data=1"):
        sharding.make_mesh(shape, jax.devices()[:1])


@pytest.mark.parametrize("shape", ["data=1", 3, ["data"], {"data": "1"}, {"data": 1.0}])
def test_what_is_no_shape_of_a_mesh_is_refused(shape):
    with pytest.raises(UserError, match="mesh=.* is not sizes by axis; give for example"):
        sharding.make_mesh(shape, jax.devices()[:1])


def test_an_unknown_mesh_axis_is_refused():
    with pytest.raises(UserError, match="did you mean 'fsdp'"):
        sharding.make_mesh({"fdsp": 1}, jax.devices()[:1])


def test_boxed_leaves_are_partitioned_and_plain_ones_replicated():
    mesh = sharding.make_mesh(None, jax.devices()[:1])
    boxed = {
        "kernel": nn.LogicallyPartitioned(jnp.zeros((4, 4)), ("embed", "mlp")),
        "count": jnp.zeros(()),
    }
    found = sharding.shardings(boxed, mesh, "fsdp_tp")
    assert found["count"].spec == PartitionSpec() and found["kernel"].mesh == mesh
    assert jax.tree.structure(found) == jax.tree.structure(sharding.unbox(boxed))
    assert sharding.batch_sharding(mesh).spec == PartitionSpec(("slice", "data", "fsdp"))


@pytest.mark.parametrize(
    ("shape", "rules"),
    [
        (None, "dp"),
        ({"data": 8}, "dp"),
        ({"fsdp": 8}, "fsdp"),
        ({"fsdp": -1, "tensor": 2}, "fsdp_tp"),
    ],
)
def test_the_rules_of_a_mesh_use_all_its_axes(shape, rules):
    assert sharding.rules_of(shape) == rules


def test_a_mesh_is_read_from_a_word():
    assert sharding.parse_mesh("data=2, fsdp=-1") == {"data": 2, "fsdp": -1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data", "'data'"),
        ("data=x", "'data=x'"),
        ("data=1,data=2", "once"),
        ("dta=1", "mean 'data'"),
    ],
)
def test_a_word_that_is_no_mesh_is_refused(text, told):
    with pytest.raises(UserError, match=told):
        sharding.parse_mesh(text)
