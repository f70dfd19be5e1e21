"""What convolutions and their gradients take on a CPU, by the ways that a training step could go.

    python benchmarks/convolutions.py

For each size the medians in milliseconds of a convolution that XLA gives to YNNPACK and of one
that it does not, as `t2i_jax.compiler` has it, with zeros around the image and ("within") of
an image that has them already; of the gradient of the input by turning the kernel around and by
one product for all places of the window; of the gradient of the kernel; of the three by fewer
products (`t2i_jax.nn.winograd`); and what PyTorch takes for them. `t2i_jax.nn.cpu_convolution`
chooses between these. The floor is the time of all products at the rate of `limits.py`.
"""

from __future__ import annotations

import functools
import statistics
import time

import jax
import numpy as np
import torch
from limits import machine

from t2i_jax.compiler import options_for
from t2i_jax.heap import keep_freed_memory
from t2i_jax.nn import cpu_convolution, winograd
from t2i_jax.nn.tiles import padded

_SIZES = (  # images, side, channels in and out; the window is 3
    (4, 8, 512, 512),
    (4, 8, 1024, 2048),
    (4, 16, 512, 512),
    (4, 32, 64, 64),
    (4, 32, 128, 128),
    (4, 64, 64, 64),
    (4, 64, 128, 128),
    (4, 128, 64, 64),
    (64, 8, 64, 64),
    (64, 16, 64, 64),
    (64, 32, 16, 16),
)
_RUNS = 9


def main() -> None:
    """Prints a table."""
    keep_freed_memory()

    def convolved(x, kernel):
        return cpu_convolution.whole(x, kernel, 1, 1)

    def within(x, kernel):
        return cpu_convolution.whole(x, kernel, 1, 0)

    def fewer(x, kernel, turned=False):
        return winograd.convolve(padded(x, 1, 1), kernel, turned)

    rate, usual = machine()["flops"], options_for("cpu")
    names = "YNNPACK | without | within, YNNPACK | within, without | turned around | one product"
    fewer_names = "fewer products | of the input | of the kernel"
    header = f"{names} | kernel | {fewer_names} | PyTorch | input | kernel | floor"
    print(f"| images, side, channels | {header} |")
    print("| --- |" + " ---: |" * 14)
    for images, side, channels, features in _SIZES:
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (images, side, side, channels))
        whole = jax.random.normal(keys[0], (images, side + 2, side + 2, channels))
        y = jax.random.normal(keys[1], (images, side, side, features))
        kernel = jax.random.normal(keys[2], (3, 3, channels, features))
        times = [
            _seconds(convolved, (x, kernel), None),
            _seconds(convolved, (x, kernel), usual),
            _seconds(within, (whole, kernel), None),
            _seconds(within, (whole, kernel), usual),
            _seconds(lambda y, k: cpu_convolution._turned_around(y, k, 1), (y, kernel), usual),
            _seconds(lambda y, k: cpu_convolution._all_taps(y, k, 1), (y, kernel), usual),
            _seconds(lambda x, y: cpu_convolution._by_convolution(x, y, False), (whole, y), usual),
            _seconds(fewer, (x, kernel), usual),
            _seconds(functools.partial(fewer, turned=True), (y, kernel), usual),
            _seconds(winograd.to_kernel, (whole, y), usual),
            *_of_pytorch(x, kernel, y),
            2 * 9 * images * side**2 * channels * features / rate,
        ]
        told = " | ".join(f"{1e3 * one:.3g}" for one in times)
        print(f"| {images}, {side}, {channels} to {features} | {told} |", flush=True)


def _seconds(function, arguments, options):
    program = jax.jit(function).lower(*arguments).compile(compiler_options=options)
    return _median(lambda: jax.block_until_ready(program(*arguments)))


def _of_pytorch(*arrays):
    """The seconds of the convolution and of both gradients, eager."""
    axes = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
    x, kernel, y = (
        torch.from_numpy(np.array(np.transpose(array, order), order="C"))
        for array, order in zip(arrays, axes, strict=True)
    )

    def back(*wanted):
        both = [1, 1]
        torch.ops.aten.convolution_backward(
            y, x, kernel, None, both, both, both, False, [0, 0], 1, wanted
        )

    yield _median(lambda: torch.conv2d(x, kernel, None, 1, 1))
    yield _median(lambda: back(True, False, False))
    yield _median(lambda: back(False, True, False))


def _median(run):
    found = []
    for _ in range(_RUNS + 2):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return statistics.median(found[2:])


if __name__ == "__main__":
    main()
