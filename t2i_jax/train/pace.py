"""How fast a run is: step time, images per second, MFU, and waiting for data."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from t2i_jax.train.chips import chip_of
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.stall import MUCH


class Pace:
    """Measures from one call of `measure` to the next, hooks and saves left out."""

    def __init__(self, step: int, batch_size: int, flops: float, clock: Goodput):
        self._batch_size, self._flops, self._peak = batch_size, flops, peak_flops()
        self.is_first = True
        self._clock, self._step, self._seconds = clock, step, clock.seconds()

    def measure(self, step: int) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """(metrics, what the progress line shows) after a step that is done.

        The first time that of the first step.
        """
        seconds = self._clock.seconds()
        spent = {kind: seconds[kind] - self._seconds[kind] for kind in seconds}
        steps = max(step - self._step, 1)
        self._step, self._seconds = step, seconds
        if self.is_first:
            self.is_first = False
            first = spent["compile"] + spent["step"]
            return {"seconds_first_step": first}, {"first step": f"{first:.1f}s"}
        busy = max(spent["step"] + spent["input"], 1e-9)
        each, wait = busy / steps, spent["input"] / busy
        rate, mfu = self._batch_size / each, self._flops / each / self._peak
        metrics = {
            "seconds_per_step": each,
            "images_per_second": rate,
            "mfu": mfu,
            "input_wait": wait,
        }
        shown = {"step": f"{1e3 * each:.0f}ms", "img/s": f"{rate:.0f}", "MFU": f"{mfu:.0%}"}
        return metrics, {**shown, "wait": f"{wait:.0%}" + " !" * (wait > MUCH)}


def peak_flops() -> float:
    """Peak FLOP/s of all devices of this run.

    For a kind that is not in the table, the measured speed of a matmul.
    """
    device = jax.local_devices()[0]
    if chip := chip_of(device.device_kind):
        return chip.flops * jax.device_count()
    on_cpu = device.platform == "cpu"
    side, dtype = (1024, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    x = jax.device_put(jnp.ones((side, side), dtype), device)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # simulated devices share the cores
    devices = jax.process_count() if on_cpu else jax.device_count()
    return devices * 2 * side**3 / min(seconds)
