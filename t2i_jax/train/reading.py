"""Which step of a folder of checkpoints is read: the newest that can be, or the one that is asked
for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from t2i_jax.errors import UserError, first_line
from t2i_jax.terminal import say
from t2i_jax.train import best as bests

_TRIES = 20  # of reading beside a run that removes what is read
Found = TypeVar("Found")


class Gone(FileNotFoundError):
    """A step was removed, by the run that is training, while it was read."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Reads steps of a folder, which a run that trains may remove meanwhile.

    Attributes:
      folder: of the checkpoints.
      metric: of the scores, see `Checkpoints`.
      steps: lists the finished steps, ascending.
      is_own: whether this process alone writes the folder, so that no step goes while it is read.
    """

    folder: pathlib.Path
    metric: str | None
    steps: Callable[[], Sequence[int]]
    is_own: bool

    def newest(
        self,
        read: Callable[[int], Found],
        agree: Callable[[str | None], str | None] = lambda error: error,
    ) -> tuple[int, Found, Sequence[tuple[int, str]]] | None:
        """(step, result of `read`, newer steps that are damaged with their errors) of the newest
        step that can be read; None without any step.

        Args:
          agree: makes of this process's error (None: none) that of all processes.

        Raises:
          UserError: there are steps, and none can be read.
          Gone: a step went while it was read.
        """
        damaged = []
        for step in reversed(self.steps()):
            found: Any = None
            error = None
            try:
                found = self._whole(read, step)
            except (UserError, Gone):
                raise
            except Exception as raised:  # whatever a damaged file makes the libraries raise
                error = first_line(raised)
            if error := agree(error):
                damaged.append((step, error))
                continue
            return step, found, damaged
        if damaged:
            raise UserError(
                f"checkpoints={str(self.folder)!r} holds none that can be read ({damaged[0][1]}); "
                "restore the folder from a copy, or start a new workdir."
            )
        return None

    def chosen(self, read: Callable[[int], Found], step: Any) -> Found:
        """The result of `read` for a step that was asked for, a number or "best".

        Raises:
          UserError: it is not there, or can't be read.
          Gone: the step went while it was read.
        """
        known = self.steps()
        if step == "best":
            step = self._best(known)
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
            raise UserError(
                f"step={step!r} is neither 'best' nor a whole number; give best or one of "
                f"{', '.join(map(str, known))}."
            )
        if step not in known:
            raise UserError(
                f"step={step!r} has no checkpoint in {str(self.folder)!r}; give best or one of "
                f"{', '.join(map(str, known))}."
            )
        try:
            return self._whole(read, int(step))
        except (UserError, Gone):
            raise
        except Exception as error:  # whatever a damaged file makes the libraries raise
            raise UserError(
                f"step={step}: that checkpoint can't be read ({first_line(error)}); give another "
                f"one of {', '.join(map(str, known))}."
            ) from error

    def _best(self, known):
        """The best of steps by the scores that are there now, which a run may still add to.

        Raises:
          UserError: none has a score that can be trusted.
        """
        doubtful = bests.doubtful(self.folder)
        found = bests.scores(self.folder, self.metric, doubtful)
        best = bests.best_of({n: s for n, s in found.items() if n in known})
        steps = ", ".join(map(str, known))
        if best is None and doubtful:
            raise UserError(
                f"step='best': {doubt(*max(doubtful.items()))}, and no other has a score; "
                f"give one of the steps {steps}."
            )
        if best is None:
            raise UserError(
                f"step='best': no checkpoint of {str(self.folder)!r} was validated; give one "
                f"of the steps {steps}, or train with data.heldout=0.05."
            )
        for step, error in doubtful.items():
            say(f"{doubt(step, error)}; step {best} is, give step={step} to take that one.")
        return best

    def _whole(self, read, step):
        """The result of `read` for a step, if the step is there from the beginning to the end: of
        an array that went, a part may be read as zeros.

        Raises:
          Gone: it is not.
        """
        is_there = (self.folder / str(step)).is_dir
        try:
            found = read(step)
        except UserError:
            raise
        except Exception as error:
            if not self.is_own and not is_there():
                raise Gone(step) from error
            raise
        if not self.is_own and not is_there():
            raise Gone(step)
        return found


def relisting(folder: pathlib.Path, look: Callable[[], Found]) -> Found:
    """The result of `look`, which lists the steps of a folder, begun anew where one of them goes
    meanwhile: a run that is training removes its old ones.

    Raises:
      UserError: steps go faster than they are read.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return look()
    raise UserError(
        f"checkpoints={str(folder)!r} lost its newest one {_TRIES} times while that was read; give "
        "train.keep or train.save_every a larger value, or wait for the run's end."
    )


def doubt(step: int, error: str) -> str:
    """The beginning of a sentence about a step whose score is not what was written."""
    return f"the score of step {step} can't be trusted ({error}), so it is not taken as the best"
