"""The papers' networks on one device of this machine: training steps, sampling, attention.

    python benchmarks/accelerator.py                     # all rows, and the table for README.md
    python benchmarks/accelerator.py machine parti_350m attention peer
    python benchmarks/accelerator.py --profile parti_3b  # and the kernels that take the time
    python benchmarks/accelerator.py --sample parti_3b   # that alone; --train: the step alone
    python benchmarks/accelerator.py --small             # toy sizes, to see that it runs

Weights and batches are random. Times are medians of up to five, after a first one that compiles.
The share is that of the device's own matrix products (bfloat16, 8192 x 8192) for training and
attention, and of its own copying of memory for decoding tokens: both are measured first. `peer` is
the decoder of Parti 350M in PyTorch with a KV cache and `torch.compile` (`torch_cached.py`).
"""

from __future__ import annotations

import collections
import functools
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from limits import read_per_token

from t2i_jax.config import override
from t2i_jax.nn import fused_attention
from t2i_jax.runs.recipe import load_recipe
from t2i_jax.sharding import make_mesh, unbox
from t2i_jax.train import state as states
from t2i_jax.train.compiled import CompiledStep
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
_KEPT = ("task.model.remat=none", "task.text.remat=none")  # one device has the memory
RECIPES = {  # a recipe, images at a time, and what makes it a toy
    "parti_350m": ("parti/paper_350m.py", 32, _TINY_PARTI),
    "parti_350m_kept": ("parti/paper_350m.py", 32, (*_TINY_PARTI, *_KEPT)),
    "parti_750m": ("parti/paper_750m.py", 32, _TINY_PARTI),
    "parti_3b": ("parti/paper_3b.py", 16, _TINY_PARTI),
    "imagen_base": ("imagen/paper_base.py", 64, _TINY_UNET),
}
ROWS = ("machine", *RECIPES, "attention", "peer")
_WITHIN = 12.0  # seconds after which a slow row is not repeated further


@functools.cache
def matmul_rate(side: int) -> float:
    """FLOP/s of matrix products of bfloat16, side x side, eight after one another."""
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)

    @jax.jit
    def chain(x):
        for _ in range(8):
            x = jnp.dot(x, x) * (1 / side**0.5)
        return x

    return 8 * 2 * side**3 / _seconds(lambda: chain(x))[1]


@functools.cache
def bandwidth(count: int) -> float:
    """Bytes per second read and written by a copy of `count` numbers of float32."""
    x = jnp.ones((count,), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    return 2 * 4 * count / _seconds(lambda: copy(x))[1]


def machine(small: bool) -> list[str]:
    """Lines about the device itself."""
    matmul, copy = matmul_rate(*_SIDE[small]), bandwidth(*_COUNT[small])
    return [
        f"matrix products, bfloat16: {matmul / 1e12:.3g} TFLOP/s | | | | |",
        f"copying memory: {copy / 1e9:.4g} GB/s | | | | |",
    ]


_SIDE, _COUNT = {False: (8192,), True: (256,)}, {False: (2**30,), True: (2**20,)}


def train(recipe, batch_size: int, small: bool) -> str:
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
    program = CompiledStep(step, mesh=make_mesh(devices=jax.devices()[:1]))
    batch = jax.device_put(_random(task.batch_spec(batch_size)))

    def once():
        nonlocal state
        state, metrics = program(state, {}, batch)
        return metrics

    first, each = _seconds(once)
    share = task.flops(batch_size) / each / matmul_rate(*_SIDE[small])
    return _line(f"train, {batch_size} at a time", first, each, f"{batch_size / each:.1f}", share)


def sample(recipe, count: int, small: bool) -> str:
    """A line about making images from text, with guidance: Parti's tokens, or all steps of the
    stage's sampler.
    """
    task = recipe.task
    params = unbox(jax.jit(task.init)(jax.random.key(0))[0])
    (group, function, prompt), *_ = task.sampling_programs(count).values()
    keys, prompt = jax.random.split(jax.random.key(1), count), jax.device_put(_random(prompt))
    program = jax.jit(function)
    first, each = _seconds(lambda: program(params[group], {}, prompt, keys))
    read, share = _decode_bytes(task, params, 2 * count), None
    if read:
        share = read / each / bandwidth(*_COUNT[small])
    return _line(f"sample, {count} at a time", first, each, f"{count / each:.2f}", share)


def _decode_bytes(task, params, rows):
    """What an autoregressive decoder cannot help reading for all its tokens: the weights that a
    token needs (`limits.read_per_token`) in 16 bits once per token, and of the KV cache of these
    rows what is filled; None of other systems.
    """
    model = getattr(task, "model", None)
    if not hasattr(model, "past_names"):
        return None
    weights = sum(leaf.size for leaf in read_per_token(params["parti"]["decoder"]))
    kept = 2 * model.depth * model.dim * rows  # keys and values of one token
    return 2 * model.num_tokens * (weights + kept * (model.num_tokens / 2 + task.text.max_length))


def peer(small: bool) -> list[str]:
    """Lines about the decoder of Parti 350M in PyTorch: a training step and tokens with guidance.

    Without an encoder of text and with AdamW, so the training step has less to do than ours.
    """
    try:
        import torch
    except ImportError:
        return ["PyTorch is not installed | | | | |"]
    from torch_cached import CachedDecoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (32, 1, 2, 2, 16, 32, 64, 16) if small else (1024, 12, 16, 16, 64, 4096, 8192, 1024)
    batch, count, length = (2, 2, 4) if small else (32, 8, 128)
    model = CachedDecoder(*sizes).to(device)
    adam = torch.optim.AdamW(model.parameters(), fused=device == "cuda")
    ids = torch.randint(0, sizes[-2], (batch, sizes[-1]), device=device)
    text = torch.randn(batch, length, sizes[0], device=device, dtype=torch.bfloat16)
    forward = model if small else torch.compile(model)

    def wait(result):
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def step():
        with torch.autocast(device, torch.bfloat16):
            logits = forward(ids, text)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
        loss.backward()
        adam.step()
        adam.zero_grad()
        return wait(0.0)

    lines = []
    if "--sample" not in sys.argv:
        first, each = _seconds(step)
        what = f"PyTorch, train, {batch} at a time"
        lines.append(_line(what, first, each, f"{batch / each:.1f}", None))
    model.eval().to(torch.bfloat16)
    compiled = None if small else torch.compile(model.step, mode="reduce-overhead")
    texts = text[: 2 * count].repeat(2, 1, 1)[: 2 * count]
    first, each = _seconds(lambda: wait(model.generate(texts, compiled)).cpu().numpy())
    lines.append(
        _line(f"PyTorch, sample, {count} at a time", first, each, f"{count / each:.2f}", None)
    )
    return lines


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
        share = flops / each / matmul_rate(*_SIDE[small])
        lines.append(
            _line(f"{name}, {shape[0]} rows", first, each, f"{shape[0] / each:.0f}", share)
        )
    apart = np.max(np.abs(results[0] - results[1])) / np.max(np.abs(results[1]))
    return [*lines, f"{apart:.0e} of the largest gradient lies between the two | | | | |"]


def _seconds(work):
    """(of the first time, which compiles; median of up to five more)."""
    times = []
    while len(times) < 2 or (len(times) < 6 and sum(times[1:]) < _WITHIN):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    if "--profile" in sys.argv:
        _profile(work)
    return times[0], statistics.median(times[1:])


def _profile(work):
    """Prints the kernels of one unit of work that take the most time of the device."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            _print_kernels(jax.profiler.ProfileData.from_file(str(path)))


def _print_kernels(profile):
    spent, count = collections.Counter(), collections.Counter()
    for plane in profile.planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            for event in line.events if line.name.startswith("Stream") else ():
                spent[event.name] += event.duration_ns / 1e6
                count[event.name] += 1
    total = sum(spent.values())
    print(f"    kernels: {total:.1f} ms", flush=True)
    for name, milliseconds in spent.most_common(16):
        print(f"    {milliseconds:9.2f} ms {count[name]:6d}x  {name[:150]}")


def _line(what, first, each, rate, share):
    held = jax.local_devices()[0].memory_stats() or {}
    memory = f"{held['peak_bytes_in_use'] / 2**30:.1f}" if "peak_bytes_in_use" in held else ""
    share = "" if share is None else f"{share:.0%}"
    return f"{what} | {first:.1f} | {each:.4g} | {rate} | {share} | {memory}"


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
    small, names = "--small" in words, [word for word in words if not word.startswith("--")]
    for name in names:
        if name not in ROWS:
            sys.exit(f"row={name!r} is not known; known: {', '.join(ROWS)}.")
    print(f"{jax.local_devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| row | what | first s | s | a second | share | peak GiB so far |\n|" + " --- |" * 7)
    for name in names or ROWS:
        lines = LINES[name](small) if name in LINES else _recipe(name, small)
        for line in lines:
            print(f"| {name} | {line} |", flush=True)


def _recipe(name, small):
    path, count, changes = RECIPES[name]
    own = tuple(change for change in changes if change in _KEPT)
    recipe = override(load_recipe(_CONFIGS / path), changes if small else own)
    if "--sample" not in sys.argv:
        yield train(recipe, 2 if small else count, small)
    if "--train" not in sys.argv:
        yield sample(recipe, 2 if small else 8, small)


LINES = {"machine": machine, "attention": attention, "peer": peer}


if __name__ == "__main__":
    main(sys.argv[1:])
