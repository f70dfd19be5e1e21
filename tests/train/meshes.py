"""A few steps of a task on one device and on meshes of eight, and what both give, compared."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from t2i_jax import sharding
from t2i_jax.train import state as states
from t2i_jax.train.loop import TrainConfig
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.step import train_step

MESHES = {
    "dp": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
}
MORE = {
    "sequence": {"fsdp": 2, "sequence": 2, "tensor": 2},
    "slices": {"slice": 2, "data": 2, "fsdp": 2},
}
# SGD-like: a large eps keeps Adam from blowing rounding differences of tiny gradients up to the
# size of a step. Averages are the same for all networks, and a fourth of what a step compiles.
CONFIG = TrainConfig(
    batch_size=16, ema_decay=0.0, optim=OptimConfig(learning_rate=0.01, eps=1e-2, clip_norm=1.0)
)
AVERAGING = dataclasses.replace(CONFIG, ema_decay=0.9)


def setting(task, mesh, rules, config=CONFIG):
    """(jitted start, jitted step, abstract state) of a task on a mesh."""
    optimisers = states.optimisers_of(task, config)
    start = states.start_of(task, optimisers, config.ema_decay)
    abstract = states.abstract(task, optimisers, config.ema_decay, mesh, rules)
    at = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = functools.partial(
        train_step, task=task, optimisers=optimisers, ema_decay=config.ema_decay
    )
    return jax.jit(start, out_shardings=at), jax.jit(step, out_shardings=(at, None)), abstract


def begin(task, mesh, config=CONFIG):
    """The state before the first step, almost without a compiler, on the host: from there each mesh
    takes its parts without a program that cuts them.
    """
    optimisers = states.optimisers_of(task, config)
    start = states.start_of(task, optimisers, config.ema_decay)
    abstract = states.abstract(task, optimisers, config.ema_decay, mesh, "dp")
    return jax.tree.map(
        lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf),
        states.first(start, abstract, seed=0),
    )


def run(task, mesh, rules, frozen, batches, first=None, config=CONFIG):
    """(state, metrics of every step, sharding specs of the parameters) after the batches, from the
    state `first`.
    """
    start, step, abstract = setting(task, mesh, rules, config)
    at = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state, metrics = start(jax.random.key(0)) if first is None else jax.device_put(first, at), []
    frozen = sharding.place_frozen(frozen, mesh, rules)
    for batch in batches:
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            state, values = step(state, frozen, batch)
        metrics.append({name: float(value) for name, value in values.items()})
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state.params)
    return state, metrics, jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, PartitionSpec))


def compare(
    task,
    batches,
    frozen=None,
    tolerance=1e-4,
    presets=tuple(MESHES),
    splits=("fsdp", "tensor"),
    config=CONFIG,
):
    """Fails where a mesh of eight gives other losses or parameters than one device.

    Args:
      tolerance: of parameters, relative to the largest change of any of their group, which is how
        far an error in a gradient shows; of stats, relative to the largest of each array. Sums over
        eight devices round differently: seen were 7e-6 at most, but for the biases and norms of a
        cascade.
      presets: of rules. "fsdp_tp" has an axis for data too, so that a network of which compiling is
        long is compared on that mesh alone. splits: axes that its parameters are split over.
    """
    one = sharding.make_mesh(None, jax.devices()[:1])
    first = begin(task, one, config)
    alone, expected, _ = run(task, one, "dp", frozen, batches, first, config)
    for name, shape in ((name, (MESHES | MORE)[name]) for name in presets):
        rules = sharding.rules_of(shape)
        mesh = sharding.make_mesh(shape)
        state, metrics, specs = run(task, mesh, rules, frozen, batches, first, config)
        axes = {axis for spec in specs for axis in spec if axis is not None}
        assert axes == set(shape) & set(splits), f"{name}: parameters are split over {axes}"
        for i, (want, have) in enumerate(zip(expected, metrics, strict=True)):
            for name, value in want.items():
                close = np.isclose(have[name], value, rtol=1e-3, atol=1e-4)
                assert close, f"{rules}, step {i}, {name}: {have[name]} instead of {value}"
        same(state.stats, alone.stats, tolerance, 1e-6 * tolerance, rules)
        for what in ("params", "ema"):
            for group, theirs in getattr(alone, what).items():
                moved = jax.tree.map(
                    lambda new, old: np.max(np.abs(np.asarray(new) - old), initial=0),
                    theirs,
                    first.params[group],
                )
                largest = max(jax.tree.leaves(moved))
                same(
                    getattr(state, what)[group],
                    theirs,
                    0.0,
                    tolerance * largest,
                    f"{rules}, {what}, {group}",
                )


def same(mine, theirs, tolerance, least, rules):
    """Fails where an array differs by more than `tolerance` times its largest entry, and by more
    than `least`.
    """
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(theirs), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        error, size = (np.max(np.abs(x), initial=0) for x in (a - b, b))
        name = f"{rules}: {jax.tree_util.keystr(path)}"
        assert error <= max(tolerance * size, least), f"{name} differs by {error:.2e} of {size:.2e}"


def random_batches(task, count):
    """Batches of a task, of random numbers that its networks can read."""
    rng = np.random.default_rng(0)

    def draw(shape):
        if shape.dtype == bool:
            return np.arange(shape.shape[1])[None] < rng.integers(
                2, shape.shape[1], (shape.shape[0], 1)
            )
        return rng.integers(0, 30 if shape.dtype == np.int32 else 256, shape.shape).astype(
            shape.dtype
        )

    spec = task.batch_spec(CONFIG.batch_size)
    return [{name: draw(shape) for name, shape in spec.items()} for _ in range(count)]
