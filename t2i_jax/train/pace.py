"""How fast a run is: step time, pictures per second, model FLOP/s utilisation, and waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from t2i_jax.train.chips import chip_of


class Pace:
    """Measures from one call of `measure` to the next, hooks and saves left out."""

    def __init__(self, step: int, batch_size: int, flops: float):
        self._batch_size, self._flops, self._peak = batch_size, flops, peak_flops()
        self.is_first = True
        self._restart(step, 0.0)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is not counted as step time."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def measure(self, step: int, waited: float) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """(metrics, what the progress line shows); the time of the first step is that of compiling.

        Args:
          step: steps made, all of them finished on the device.
          waited: seconds that this start has waited for data in all.
        """
        seconds, waited_here = time.perf_counter() - self._start, waited - self._waited
        steps = max(step - self._step, 1)
        self._restart(step, waited)
        if self.is_first:
            self.is_first = False
            return {"seconds_first_step": seconds}, {"first step": f"{seconds:.1f}s"}
        each = seconds / steps
        rate, mfu, wait = self._batch_size / each, self._flops / each / self._peak, waited_here / seconds
        metrics = {"seconds_per_step": each, "images_per_second": rate, "mfu": mfu, "input_wait": wait}
        shown = {"step": f"{1e3 * each:.0f}ms", "img/s": f"{rate:.0f}", "MFU": f"{mfu:.0%}", "wait": f"{wait:.0%}"}
        return metrics, shown

    def _restart(self, step, waited):
        self._step, self._waited, self._start = step, waited, time.perf_counter()


def peak_flops() -> float:
    """Peak FLOP/s of all devices of this run; for a kind that is not in the table, the speed of a matrix product."""
    device = jax.local_devices()[0]
    if chip := chip_of(device.device_kind):
        return chip.flops * jax.device_count()
    on_cpu = device.platform == "cpu"
    side, dtype = (1024, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    x = jax.device_put(jnp.ones((side, side), dtype), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    devices = jax.process_count() if on_cpu else jax.device_count()  # simulated devices share the cores
    return devices * 2 * side**3 / min(seconds)
