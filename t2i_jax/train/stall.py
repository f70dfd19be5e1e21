"""Waiting for data, made visible while it lasts and in hindsight."""

from __future__ import annotations

import time
from collections.abc import Callable

from t2i_jax.train.log import Log

MUCH = 0.2  # of the time: input is what holds training up
_LONG = 5.0  # seconds for one batch
_REMEDY = "give data.workers or data.threads more, or pack the data once (`t2i data pack`)"


class Stalls:
    """Shows on the progress line that a batch does not come, and says once what helps."""

    def __init__(self, log: Log, now: Callable[[], float] = time.perf_counter):
        self._log, self._now = log, now
        self._said: set[str] = set()
        self._in_a_row = 0

    def watch(self, step: int, is_first: bool, give_up: Callable[[], bool]) -> Callable[[], bool]:
        """A form of `give_up` for the wait that begins now, after this step: it tells of the wait
        meanwhile.

        A long wait is logged when it is called meanwhile.

        Args:
          is_first: readers have just been started, which may take its time.
        """
        begin = self._now()
        shown = begin

        def asked():
            nonlocal shown
            waited = self._now() - begin
            if self._now() - shown >= _LONG:
                shown = self._now()
                self._log.progress(step, {"waiting for data": f"{waited:.0f}s !"})
                if not is_first:
                    self._say_once(
                        "long",
                        f"no batch has come for {waited:.0f} s after step {step}; if the data "
                        "stay slow",
                    )
            return give_up()

        return asked

    def check(self, step: int, share: float) -> None:
        """Says so when two log lines in a row show that training waited for data for much of the
        time.

        Args:
          share: of the time since the line before, from 0 to 1, that was spent waiting for data.
        """
        self._in_a_row = self._in_a_row + 1 if share > MUCH else 0
        if self._in_a_row > 1:
            self._say_once(
                "much", f"training waits for data, {share:.0%} of the time up to step {step}"
            )

    def _say_once(self, what, sentence):
        if what not in self._said:
            self._log.say(f"{sentence}: {_REMEDY}.")
        self._said.add(what)
