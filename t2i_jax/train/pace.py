"""The speed of a run: steps and images per second, MFU, waiting for data, and the time left."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping

import jax

from t2i_jax.train.chips import chip_of
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.stall import MUCH

_RECENT = 20  # measurements by which the time that is left is told


class Pace:
    """Measures from one call of `measure` to the next, hooks and saves left out.

    Args:
      step: done before. steps: of the whole run. flops: gives those of one step; not called where
        the devices' peak is not known.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        batch_size: int,
        flops: Callable[[], float],
        clock: Goodput,
        now: Callable[[], float] = time.monotonic,
    ):
        self._steps, self._batch_size, self._peak = steps, batch_size, peak_flops()
        self._flops = flops() if self._peak else 0.0
        self.is_first = True
        self._clock, self._step, self._seconds = clock, step, clock.seconds()
        self._now = now
        self._recent: collections.deque = collections.deque(maxlen=_RECENT)

    def measure(self, step: int) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """The metrics after a step that is done, and the values that the progress line shows.

        The first time that of the first step, from which no speed can be told.
        """
        seconds = self._clock.seconds()
        spent = {kind: seconds[kind] - self._seconds[kind] for kind in seconds}
        steps = max(step - self._step, 1)
        self._step, self._seconds = step, seconds
        self._recent.append((step, self._now()))
        if self.is_first:
            self.is_first = False
            first = spent["compile"] + spent["step"]
            return {"seconds_first_step": first}, {"first step": f"{first:.1f}s"}
        busy = max(spent["step"] + spent["input"], 1e-9)
        each, wait = busy / steps, spent["input"] / busy
        rate = self._batch_size / each
        metrics = {"seconds_per_step": each, "images_per_second": rate}
        shown = {"left": self._left(), "steps/s": _rate(1 / each), "img/s": _rate(rate)}
        if self._peak:
            metrics["mfu"] = self._flops / each / self._peak
            shown["MFU"] = f"{metrics['mfu']:.0%}"
        shown["wait"] = f"{wait:.0%}" + " !" * (wait > MUCH)
        return {**metrics, "input_wait": wait}, shown

    def _left(self):
        """The time to the last step at the newest speed, with hooks and saves and without the
        first step and what came before.
        """
        (first, begin), (last, end) = self._recent[0], self._recent[-1]
        seconds = round((self._steps - last) * (end - begin) / max(last - first, 1))
        minutes, hours = seconds // 60, seconds // 3600
        return (
            f"{hours}:{minutes % 60:02d}:{seconds % 60:02d}"
            if hours
            else f"{minutes}:{seconds % 60:02d}"
        )


def peak_flops() -> float | None:
    """The peak FLOP/s of all devices of this run; None for a CPU and for what is not in the
    table.
    """
    chip = chip_of(jax.local_devices()[0].device_kind)
    return chip.flops * jax.device_count() if chip else None


def _rate(value):
    """A number as text with three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
