"""What of the papers' networks is left whole on every device, where parameters are split."""

import math
import pathlib

import flax.linen as nn
import jax
import pytest
from jax.sharding import AbstractMesh

from t2i_jax import sharding
from t2i_jax.runs.recipe import load_recipe

_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
_RECIPES = [
    "parti/paper_350m",
    "parti/paper_750m",
    "parti/paper_3b",
    "parti/paper_20b",
    "parti/paper_vit_vqgan",
    "imagen/paper_base",
    "imagen/paper_larger",
    "imagen/paper_largest",
]
_MESHES = {"fsdp": {"fsdp": 64}, "fsdp_tp": {"fsdp": 16, "tensor": 4}}


def _bytes(recipe, rules):
    """(bytes of all parameters, {path: bytes} of those that are whole on every device)."""
    mesh = AbstractMesh(
        tuple(_MESHES[rules].get(axis, 1) for axis in sharding.MESH_AXES), sharding.MESH_AXES
    )
    params = dict(
        jax.eval_shape(load_recipe(_CONFIGS / f"{recipe}.py").task.init, jax.random.key(0))[0]
    )

    def is_box(leaf):
        return isinstance(leaf, nn.LogicallyPartitioned)

    total, whole = 0, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box):
        shape = leaf.value.shape if is_box(leaf) else leaf.shape
        size = 4 * math.prod(shape)
        total += size
        names = leaf.names if is_box(leaf) else (None,) * len(shape)
        if not any(sharding.resolve(names, shape, mesh, rules)):
            whole[jax.tree_util.keystr(path)] = size
    return total, whole


@pytest.mark.parametrize("rules", _MESHES)
@pytest.mark.parametrize("recipe", _RECIPES)
def test_no_parameter_of_size_is_whole_on_every_device(recipe, rules):
    """`pytest -rP` lists the bytes.

    The largest is a convolution of 513 channels, one of which is made of the others.
    """
    total, whole = _bytes(recipe, rules)
    print(
        f"{recipe} {rules}: {sum(whole.values()) / 1e6:.1f} of {total / 1e6:.0f} MB whole on every "
        "device"
    )
    largest = sorted(whole.items(), key=lambda item: -item[1])[:5]
    assert sum(whole.values()) < 0.015 * total, largest
    assert max(whole.values(), default=0) < 1e7, largest
