"""`t2i export RUN OUT`: the trained system without its history."""

from __future__ import annotations

import pathlib
from typing import Annotated

from t2i_jax.cli.arguments import Shown

_Step = Annotated[str | None, Shown("STEP", default="the newest")]


def export(run: pathlib.Path, out: pathlib.Path, step: _Step = None) -> None:
    """Write a run's system as system.json and weights.safetensors, which t2i sample and t2i.load
    read.

    Args:
        run: Folder of the run.
        out: New folder; nothing is overwritten.
        step: The checkpoint: its step, or best, the one with the best validation metric.
    """
    from t2i_jax import runs
    from t2i_jax.runs.folder import checkpoint_step

    print(f"written: {runs.export(run, out, checkpoint_step(step))}")
