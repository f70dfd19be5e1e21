"""Where arrays lie on eight devices, and that splitting them changes nothing: cases of eight.py."""

import pathlib
import tempfile

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from t2i_jax import sharding
from t2i_jax.nn.conv import conv
from t2i_jax.on_host import initialise
from t2i_jax.train.checkpoint import Checkpoints
from tests.train import idle as idle_groups
from tests.train.meshes import AVERAGING, MESHES, compare, run, same, setting
from tests.train.toy import ToyBatches, ToyTask


def toy():
    """The toy task, and a checkpoint of eight devices read by eight, four, two and one."""
    source, task = ToyBatches(), ToyTask()
    batches = [
        {name: batch[name] for name in ("x", "y")} for batch in (next(source) for _ in range(2))
    ]
    compare(task, batches, config=AVERAGING)

    # made where it lies
    mesh = sharding.make_mesh(MESHES["fsdp_tp"])
    state, _, _ = run(task, mesh, "fsdp_tp", None, batches, config=AVERAGING)
    moments = state.opt_state["first"][1].mu["wide"]
    assert (
        moments.sharding.spec
        == state.params["first"]["wide"].sharding.spec
        == PartitionSpec("fsdp", "tensor")
    )
    assert state.ema["first"]["wide"].sharding == state.params["first"]["wide"].sharding
    with tempfile.TemporaryDirectory() as workdir:
        checkpoints = Checkpoints(workdir, keep=1)
        checkpoints.save(2, state, [{"number": 2}], {})
        checkpoints.wait()
        places = (
            (8, {"fsdp": 8}, "fsdp"),
            (4, {"data": 2, "tensor": 2}, "fsdp_tp"),
            (2, None, "fsdp"),
            (1, None, "dp"),
        )
        for count, shape, rules in places:
            mesh = sharding.make_mesh(shape, jax.devices()[:count])
            _, _, abstract = setting(task, mesh, rules, AVERAGING)
            restored, positions = checkpoints.restore(abstract, lambda stored: None)
            assert positions == [{"number": 2}]
            assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(restored.params)} == {count}

            def plain(s):
                return s.replace(key=jax.random.key_data(s.key))

            chex.assert_trees_all_equal(plain(restored), plain(state))
        places = sharding.shardings(
            sharding.parameters_of(task), sharding.make_mesh({"fsdp": 8}), "fsdp"
        )
        _, weights = checkpoints.weights(places)
        for name in ("params", "ema"):
            chex.assert_trees_all_equal(weights[name], dict(getattr(state, name)))
        assert weights["params"]["first"]["wide"].sharding == places["first"]["wide"]
        checkpoints.close()


def idle():
    """A group that is not trained lies in the hosts' memory, in shards; nothing else changes."""
    with tempfile.TemporaryDirectory() as workdir:
        idle_groups.check(pathlib.Path(workdir), MESHES["fsdp_tp"])


def frozen():
    """Frozen parameters: large ones are split as the rules split parameters, small ones are not."""
    tree = {
        "large": jnp.zeros((3, 512, 64)),
        "small": jnp.zeros((8, 8)),
        "odd": jnp.zeros((257, 257)),
    }
    mesh = sharding.make_mesh({"fsdp": 8})
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, sharding.place_frozen(tree, mesh, "fsdp"))
    assert specs == {
        "large": PartitionSpec(None, "fsdp"),
        "small": PartitionSpec(),
        "odd": PartitionSpec(),
    }
    whole = sharding.place_frozen(tree, mesh, "dp")
    assert all(leaf.sharding.spec == PartitionSpec() for leaf in jax.tree.leaves(whole))


class TwoConvolutions(nn.Module):
    """A stride of 2, then of 1: no smaller network was found to come out wrong, see
    `sharding.RULES`.
    """

    @nn.compact
    def __call__(self, x_BHWC):
        return conv(16, 3, "second")(jnp.tanh(conv(16, 4, "first", stride=2)(x_BHWC)))


def strided():
    """The gradient through a strided convolution, which was wrong by 90% with both of its channel
    axes split.
    """
    model = TwoConvolutions()
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 8)).astype(np.float32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), x)
    first = initialise(lambda key: model.init(key, x), jax.random.key(0))
    gradient = jax.grad(lambda params, x: jnp.mean(model.apply(params, x) ** 2))
    expected = jax.jit(gradient)(first, x)
    for rules, shape in MESHES.items():
        mesh = sharding.make_mesh(shape)
        at = sharding.shardings(boxed, mesh, rules)
        here = (
            jax.device_put(first, at),
            jax.device_put(x, sharding.batch_sharding(mesh)),
        )
        same(jax.jit(gradient, out_shardings=at)(*here), expected, 1e-4, 0.0, rules)


CASES = (toy, idle, frozen, strided)
