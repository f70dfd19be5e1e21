"""The papers' networks on one device of this machine: training steps, sampling, attention.

    python benchmarks/accelerator.py                     # all rows, and the table for README.md
    python benchmarks/accelerator.py parti_350m attention
    python benchmarks/accelerator.py --small             # toy sizes, to see that it runs

Weights and batches are random. Times are medians of five, after a first one that compiles.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.config import override
from t2i_jax.nn import fused_attention
from t2i_jax.runs.recipe import load_recipe
from t2i_jax.sharding import unbox
from t2i_jax.train import state as states
from t2i_jax.train.compiled import CompiledStep
from t2i_jax.train.pace import peak_flops
from t2i_jax.train.step import train_step

_CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
_TINY_PARTI = (
    "task.model.text_embed_dim=32",
    "task.model.fmap_size=4",
    *(
        f"task.{part}.{field}"
        for part in ("model", "text")
        for field in ("dim=32", "depth=1", "heads=2", "mlp_dim=32")
    ),
)
_TINY_UNET = (
    "task.stages.0.unet.dim=8",
    "task.stages.0.unet.num_resnet_blocks=1",
    "task.stages.0.unet.attn_heads=2",
    "task.stages.0.image_size=16",
    "data.image_size=16",
)
RECIPES = {  # a recipe, images at a time, and what makes it a toy
    "parti_350m": ("parti/paper_350m.py", 32, _TINY_PARTI),
    "parti_750m": ("parti/paper_750m.py", 32, _TINY_PARTI),
    "parti_3b": ("parti/paper_3b.py", 16, _TINY_PARTI),
    "imagen_base": ("imagen/paper_base.py", 64, _TINY_UNET),
}
ROWS = (*RECIPES, "attention")


def train(recipe, batch_size: int) -> str:
    """A line about the training step of a recipe on one device."""
    recipe = override(
        recipe, [f"train.batch_size={batch_size}", "train.mesh=None", "train.accumulate=1"]
    )
    task, config = recipe.task, recipe.train
    optimisers = states.optimisers_of(task, config)
    state = jax.jit(states.start_of(task, optimisers, config.ema_decay))(jax.random.key(0))
    step = functools.partial(
        train_step, task=task, optimisers=optimisers, ema_decay=config.ema_decay
    )
    program, batch = CompiledStep(step), jax.device_put(_random(task.batch_spec(batch_size)))

    def once():
        nonlocal state
        state, metrics = program(state, {}, batch)
        return metrics

    first, each = _seconds(once)
    mfu = _share_of_peak(task.flops(batch_size), each)
    return _line(f"train, {batch_size} at a time", first, each, f"{batch_size / each:.1f}", mfu)


def sample(recipe, count: int) -> str:
    """A line about making images from text, with guidance: Parti's tokens, or all steps of the
    stage's sampler.
    """
    task = recipe.task
    params = unbox(jax.jit(task.init)(jax.random.key(0))[0])
    (group, function, prompt), *_ = task.sampling_programs(count).values()
    keys, prompt = jax.random.split(jax.random.key(1), count), jax.device_put(_random(prompt))
    program = jax.jit(function)
    first, each = _seconds(lambda: program(params[group], {}, prompt, keys))
    return _line(f"sample, {count} at a time", first, each, f"{count / each:.2f}", "")


def attention(small: bool) -> list[str]:
    """Lines about causal attention and its gradient, 1024 tokens of 16 heads: the device's kernel
    and XLA's.
    """
    shape = (2, 128, 2, 32) if small else (32, 1024, 16, 64)
    inputs = [jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(3)]
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    lines, results = [], []
    for name, attend in (
        ("fused", functools.partial(fused_attention.attend, causal=True)),
        ("by XLA", plain),
    ):
        program = jax.jit(
            jax.value_and_grad(
                lambda *t, attend=attend: jnp.sum(attend(*t).astype(jnp.float32) ** 2)
            )
        )
        first, each = _seconds(lambda program=program: program(*inputs))
        results.append(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), program(*inputs)[1]))
        # the backward pass is 2.5 times more
        flops = 3.5 * 2 * 2 * shape[1] ** 2 / 2 * shape[3] * shape[0] * shape[2]
        share = _share_of_peak(flops, each)
        lines.append(
            _line(f"{name}, {shape[0]} rows", first, each, f"{shape[0] / each:.0f}", share)
        )
    apart = np.max(np.abs(results[0] - results[1])) / np.max(np.abs(results[1]))
    return [*lines, f"{apart:.0e} of the largest gradient lies between the two | | | | |"]


def _seconds(work):
    """(of the first time, which compiles; median of five more)."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return times[0], statistics.median(times[1:])


def _share_of_peak(flops, seconds):
    """Of one device; "" where its peak is not known."""
    peak = peak_flops()
    return f"{flops / seconds / peak * jax.device_count():.0%}" if peak else ""


def _line(what, first, each, rate, mfu):
    held = jax.local_devices()[0].memory_stats() or {}
    memory = f"{held['peak_bytes_in_use'] / 2**30:.1f}" if "peak_bytes_in_use" in held else ""
    return f"{what} | {first:.1f} | {each:.4g} | {rate} | {mfu} | {memory}"


def _random(spec):
    rng = np.random.default_rng(0)

    def draw(shape):
        if shape.dtype == bool:
            return np.ones(shape.shape, bool)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return rng.integers(0, 250, shape.shape).astype(shape.dtype)
        return rng.normal(size=shape.shape).astype(shape.dtype)

    return {name: draw(shape) for name, shape in spec.items()}


def main(words: list[str]) -> None:
    """Prints the table, a row as soon as it is measured."""
    small, names = "--small" in words, [word for word in words if word != "--small"]
    for name in names:
        if name not in ROWS:
            sys.exit(f"row={name!r} is not known; known: {', '.join(ROWS)}.")
    print(f"{jax.local_devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| row | what | first s | s | a second | MFU | peak GiB so far |\n|" + " --- |" * 7)
    for name in names or ROWS:
        for line in attention(small) if name == "attention" else _recipe(name, small):
            print(f"| {name} | {line} |", flush=True)


def _recipe(name, small):
    path, count, tiny = RECIPES[name]
    recipe = override(load_recipe(_CONFIGS / path), tiny if small else ())
    yield train(recipe, 2 if small else count)
    yield sample(recipe, 2 if small else 8)


if __name__ == "__main__":
    main(sys.argv[1:])
