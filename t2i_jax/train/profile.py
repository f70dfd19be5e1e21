"""A trace of a few steps, for TensorBoard and Perfetto."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import jax

from t2i_jax.errors import UserError, reason
from t2i_jax.train.log import Log

_FOLDER = "profile"


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps of a run that are traced: `first` to `last`, both included, counted as on the
    progress line.
    """

    first: int
    last: int

    def __post_init__(self):
        if not 1 <= self.first <= self.last:
            raise UserError(
                f"profile={self} is no range of steps; give FIRST:LAST with 1 <= FIRST <= LAST, as "
                "10:15."
            )

    @classmethod
    def parse(cls, text: str) -> Profile:
        """The profile that the text "FIRST:LAST" stands for.

        Raises:
          UserError: it is something else.
        """
        if not (found := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)):
            raise UserError(f"profile={text!r} is no range of steps; give FIRST:LAST, as 10:15.")
        return cls(int(found[1]), int(found[2]))

    def check(self, steps: int) -> None:
        """Refuses steps that a run of `steps` steps never makes."""
        if self.first > steps:
            raise UserError(f"profile={self} lies behind train.steps={steps}; give earlier steps.")

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


class Trace:
    """Writes the trace of a `Profile` into WORKDIR/profile, that of process 0.

    Used as a context of the whole loop.

    Args:
      profile: None: nothing is traced.
    """

    def __init__(self, profile: Profile | None, log: Log):
        self._profile = profile if jax.process_index() == 0 else None
        self._log, self._folder = log, pathlib.Path(log.workdir) / _FOLDER
        self._first: int | None = None  # traced step, while a trace goes on

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def before(self, step: int, queued: Any) -> None:
        """Starts the trace before its first step; `queued` is what the devices may still be
        computing.
        """
        if (
            self._profile is None
            or self._first is not None
            or not self._profile.first <= step <= self._profile.last
        ):
            return
        jax.block_until_ready(queued)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of a function: many times the rest, and slow
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        self._first = self._last = step

    def after(self, step: int, queued: Any) -> None:
        """Ends the trace after its last step was handed to the devices."""
        if self._profile is None or self._first is None:
            return
        self._last = step
        if step >= self._profile.last:
            jax.block_until_ready(queued)
            self._stop()

    def _stop(self):
        if self._first is None:
            return
        first, self._first = self._first, None
        try:
            jax.profiler.stop_trace()
        # whatever the library makes of a full disk; a trace is not worth a run
        except Exception as error:
            self._log.say(
                f"the trace can't be written to {str(self._folder)!r} ({reason(error)}); training "
                "goes on."
            )
            return
        self._log.say(f"steps {first} to {self._last} are traced in {str(self._folder)!r}")
