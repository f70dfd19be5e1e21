"""What digests cost: seconds of saving and restoring a checkpoint, and of its digests.

    python benchmarks/digests.py [MB]

MB: size of the parameters in megabytes; their optimiser's state has twice as much beside it.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from t2i_jax.train import digests
from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.types import TrainState


def main(megabytes: int) -> None:
    """Prints the seconds, and the share of the digests."""
    count, width = 16, max(1, megabytes * 2**20 // 4 // 16 // 1024)
    keys = jax.random.split(jax.random.key(0), 3)

    def tree(key):
        arrays = jax.random.normal(key, (count, width, 1024), jnp.float32)
        return {"net": {f"layer_{i}": arrays[i] for i in range(count)}}

    params, mu, nu = (tree(key) for key in keys)
    state = TrainState(
        step=jnp.int32(1),
        params=params,
        opt_state=(mu, nu),
        ema={},
        stats={},
        skipped=jnp.zeros(2, jnp.int32),
        key=jax.random.key(1),
    )
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    seconds = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ["T2I_DIGESTS"] = "off"
        with Checkpoints(home, keep=1) as checkpoints:
            with _timed(seconds, "save"):
                checkpoints.save(1, state, [{}], {})
                checkpoints.wait()
            with _timed(seconds, "restore"):
                jax.block_until_ready(checkpoints.restore(abstract, lambda config: None))
        del os.environ["T2I_DIGESTS"]
        step = pathlib.Path(home) / "checkpoints" / "1"
        with _timed(seconds, "digests written"):
            digests.write(step, 0)
        with _timed(seconds, "digests checked"):
            digests.check(step)
        size = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s")
    cost = seconds["digests written"] + seconds["digests checked"]
    share = cost / (seconds["save"] + seconds["restore"])
    print(f"{size / 1e6:.0f} MB on disk, {os.cpu_count()} cores: digests take {share:.1%}")


class _timed:
    def __init__(self, seconds, name):
        self.seconds, self.name = seconds, name

    def __enter__(self):
        self.begin = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.name] = time.perf_counter() - self.begin


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
