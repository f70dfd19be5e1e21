"""A start in a process of its own that compiles a toy step or finds it: `python -m
tests.train.again FOLDER RANK PORT`.

Eight simulated devices and one process, or, with a PORT, two processes of two devices. The last
line on stdout is JSON: how often the step was traced, the loss after two steps, and whether the old
state was given away.
"""

import json
import os
import sys

if __name__ == "__main__":
    from tests.flags import FAST

    folder, rank, port = sys.argv[1:]
    flags = f"--xla_force_host_platform_device_count={2 if port != '0' else 8} {FAST}"
    os.environ["XLA_FLAGS"] = flags

import functools
import pathlib

import jax

from t2i_jax import sharding
from t2i_jax.train import state as states
from t2i_jax.train.compiled import CompiledStep
from t2i_jax.train.executables import Executables
from t2i_jax.train.loop import TrainConfig
from t2i_jax.train.step import train_step
from tests.train.toy import ToyBatches, ToyTask

CONFIG = TrainConfig(batch_size=16, ema_decay=0.9)
TASK = ToyTask()


@functools.cache
def _beginning(mesh, task):
    """(optimisers, places of the state, compiled program that makes the first state): the same at
    every start in a process.
    """
    optimisers = states.optimisers_of(task, CONFIG)
    first = states.start_of(task, optimisers, CONFIG.ema_decay)
    rules = "fsdp_tp" if mesh.size > 1 else "dp"
    shapes = states.abstract(task, optimisers, CONFIG.ema_decay, mesh, rules)
    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return optimisers, places, jax.jit(first, out_shardings=places)


def start(folder, mesh, what="a toy", task=TASK):
    """(how often the step was traced, state after two steps, loss, whether the first state was
    given away).
    """
    optimisers, places, first = _beginning(mesh, task)
    state = first(jax.random.key(0))
    traced = []

    def step(*arguments):
        traced.append(1)
        return train_step(*arguments, task=task, optimisers=optimisers, ema_decay=CONFIG.ema_decay)

    program = CompiledStep(
        step, places, mesh, Executables(pathlib.Path(folder), {"what": what}, mesh.devices.flat)
    )
    source, before = ToyBatches(), state
    at = sharding.batch_sharding(mesh)

    def laid(array):
        return jax.make_array_from_callback(array.shape, at, lambda index: array[index])

    for _ in range(2):
        batch = next(source)
        state, metrics = program(state, {}, {name: laid(batch[name]) for name in ("x", "y")})
    given_away = all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    return len(traced), state, float(metrics["loss"]), given_away


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", f"{folder}/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 60.0)
    shape = {"data": 2, "fsdp": 2, "tensor": 2}
    if port != "0":
        jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
        shape = {"data": 1, "fsdp": 2, "tensor": 2}
    traced, _, loss, given_away = start(f"{folder}/steps", sharding.make_mesh(shape))
    print(json.dumps([traced, loss, given_away]))
