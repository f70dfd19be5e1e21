"""Goodput: the time of a run over all of its starts, every second of one kind."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from t2i_jax.files import read_object

FILE = "goodput.json"  # in the run's folder
KINDS = (
    "step", "input", "compile", "checkpoint", "hooks", "evaluate", "restart", "lost", "other",
)  # fmt: skip
_SAVES = 32  # newest saves whose time is remembered, more than there are checkpoints


class Goodput:
    """Seconds by kind, of all starts of a run together.

    | kind | the time in which |
    |---|---|
    | step | the devices train |
    | input | they are done and the next batch is not there |
    | compile | the program of the step is traced and compiled, or loaded |
    | checkpoint | a save holds training up (most runs in the background), or the last is awaited |
    | hooks | previews are drawn, and held-out batches validated |
    | evaluate | images are generated and measured, or a measurement is awaited |
    | restart | before the first step, without compiling: weights, a checkpoint, first data |
    | lost | steps were made that were not saved, and that a later start made again |
    | other | logs and traces are written |

    Goodput is the share of "step". Time between two starts is not counted, and of a start that is
    killed the time after its last log line is not known.

    Args:
      earlier: `stored()` of the starts before this one; None: this is the first.
      now: a clock in seconds.
    """

    def __init__(
        self, earlier: Mapping[str, Any] | None = None, now: Callable[[], float] = time.perf_counter
    ):
        earlier = earlier or {"seconds": {}, "saves": {"0": 0.0}}
        self._seconds = {kind: float(earlier["seconds"].get(kind, 0.0)) for kind in KINDS}
        self._saves = {int(step): float(seconds) for step, seconds in earlier["saves"].items()}
        self._now, self._kind, self._since = now, "restart", now()

    @classmethod
    def of(cls, workdir: str | pathlib.Path) -> Goodput:
        """A new start, which begins now, of the run in a folder.

        Times that can't be read count as none.
        """
        try:
            found = cls(read_object(pathlib.Path(workdir) / FILE))
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()
        times = [*found._seconds.values(), *found._saves.values()]
        return found if all(map(math.isfinite, times)) else cls()

    def resume(self, step: int) -> None:
        """Counts what earlier starts did beyond this step, that of the checkpoint resumed from, as
        lost.
        """
        # not known: a run older than this file
        reached = self._saves.get(step, self._seconds["step"])
        self._seconds["lost"] += self._seconds["step"] - reached
        self._seconds["step"] = reached
        self._saves = {saved: seconds for saved, seconds in self._saves.items() if saved <= step}

    def start_training(self) -> None:
        """Ends the kind "restart": the first step comes next."""
        self._turn_to("other")

    @contextlib.contextmanager
    def spent_on(self, kind: str) -> Iterator[None]:
        """Counts the time inside as of this kind; it has this name in a trace, too."""
        before = self._turn_to(kind)
        try:
            with jax.profiler.TraceAnnotation(kind):
                yield
        finally:
            self._turn_to(before)

    def save(self, step: int) -> None:
        """Notes that a checkpoint of this step, which is done, is about to be made."""
        self._turn_to(self._kind)
        self._saves = dict([*self._saves.items(), (step, self._seconds["step"])][-_SAVES:])

    def seconds(self) -> Mapping[str, float]:
        """The seconds by kind up to now; their sum is the time that the run was alive."""
        self._turn_to(self._kind)
        return dict(self._seconds)

    def metrics(self) -> Mapping[str, float]:
        """The metrics `goodput`, from 0 to 1, and `seconds/KIND`."""
        seconds = self.seconds()
        share = seconds["step"] / max(sum(seconds.values()), 1e-9)
        return {
            "goodput": round(share, 4),
            **{f"seconds/{kind}": round(value, 3) for kind, value in seconds.items()},
        }

    def stored(self) -> Mapping[str, Any]:
        """The JSON values from which the next start goes on."""
        return {
            "seconds": self.seconds(),
            "saves": {str(step): seconds for step, seconds in self._saves.items()},
        }

    def _turn_to(self, kind):
        """Counts the time up to now; returns the kind that it was of."""
        now, before = self._now(), self._kind
        self._seconds[before] += now - self._since
        self._kind, self._since = kind, now
        return before
