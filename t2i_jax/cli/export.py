"""`t2i export RUN OUT`: the trained system without its history."""

from __future__ import annotations

import pathlib


def export(run: pathlib.Path, out: pathlib.Path) -> None:
    """Write a run's system as system.json and weights.safetensors, which t2i sample and t2i.load
    read.

    Args:
        run: Folder of the run.
        out: New folder; nothing is overwritten.
    """
    from t2i_jax import runs

    print(f"written: {runs.export(run, out)}")
