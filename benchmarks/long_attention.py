"""Peak memory of training steps on long sequences: the config example of imagen-pytorch's page, 64
and 128 pixels.

    python benchmarks/long_attention.py [BATCH]

Every level of both U-Nets attends to itself, 16,384 tokens at the top of the second; each of the
scores' matrices would take 8.6 GB for one image.
"""

from __future__ import annotations

import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import t2i_jax as t2i
from t2i_jax import sharding
from t2i_jax.train import state as states
from t2i_jax.train.compiled import CompiledStep
from t2i_jax.train.step import train_step


def main(rows: int) -> None:
    """Prints seconds of the second step, and the largest resident set since the process began,
    compiling included.
    """
    unets = [t2i.Unet(dim=32, dim_mults=(1, 2, 4, 8)) for _ in range(2)]
    text = t2i.StoredText(dim=768)
    task = t2i.ElucidatedImagen(
        unets, image_sizes=(64, 128), cond_drop_prob=0.5, num_sample_steps=32, text=text
    )
    optimisers = states.optimisers_of(task, t2i.TrainConfig(steps=10, batch_size=rows))
    state = jax.jit(states.start_of(task, optimisers, 0.999))(jax.random.key(0))
    step = CompiledStep(
        lambda s, b: train_step(s, {}, b, task=task, optimisers=optimisers, ema_decay=0.999),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    rng = np.random.default_rng(0)
    batch = {
        name: rng.normal(size=spec.shape).astype(spec.dtype)
        for name, spec in task.batch_spec(rows).items()
    }
    batch["text_mask"] = np.ones_like(batch["text_mask"])
    for _ in range(2):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert bool(jnp.isfinite(metrics["loss"]))
    print(f"batch {rows}: {seconds:.1f} s a step of both stages, {peak:.2f} GiB at most")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
