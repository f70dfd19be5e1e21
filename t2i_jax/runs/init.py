"""The run that a new run begins with: fine-tuning."""

from __future__ import annotations

import dataclasses
import os

from t2i_jax.config import one_of
from t2i_jax.errors import UserError

_MISFITS = ("refuse", "new")


@dataclasses.dataclass(frozen=True)
class Init:
    """The run whose weights a new run begins with, at its own step 0 and with an optimiser of its
    own.

    Attributes:
      run: folder of a run, of an exported system, or of what `t2i convert from-torch` wrote.
      averaged: take its EMA weights, where it keeps some; False: those of its last step.
      misfits: what becomes of arrays that have another shape here: "refuse", or "new", which begins
        them anew.
      parts: whether the parts come from that run too, in place of recipes that would be trained
        first. A part that is a path, or a recipe with an `init` of its own, stays as it is.
    """

    run: str
    averaged: bool = True
    misfits: str = "refuse"
    parts: bool = True

    def __post_init__(self):
        if isinstance(self.run, os.PathLike):
            object.__setattr__(self, "run", os.fspath(self.run))
        if not isinstance(self.run, str) or not self.run:
            raise UserError(f"init.run={self.run!r} is no path; give the folder of a run.")
        one_of("init.misfits", self.misfits, _MISFITS)
