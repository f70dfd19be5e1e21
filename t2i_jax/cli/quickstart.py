"""`t2i quickstart`: the whole way on the built-in dataset, in minutes on two CPU cores."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import sys


def quickstart(workdir: pathlib.Path = pathlib.Path("runs/quickstart")) -> None:
    """Train an image tokenizer and a text-to-image transformer on drawn shapes, sample held-out
    captions, judge them, write a report.

    Run again it resumes where it was stopped, or says that it is done; it never starts over.

    Args:
        workdir: Folder of the run.
    """
    from t2i_jax import paths
    from t2i_jax.cli import measuring
    from t2i_jax.quickstart import run as home

    workdir = paths.folder("workdir", workdir)
    metrics = home.finished(workdir) or home.run(workdir)
    measuring.print_metrics(metrics)
    sample = shlex.join([_program(), "sample", str(workdir), "a red circle above a blue square"])
    print(f"done: open {workdir / 'report.html'}, or run  {sample}")


def _program():
    """The name by which a shell finds this program: `t2i`, or its path where the PATH has none or
    another.
    """
    started, found = sys.argv[0], shutil.which("t2i") or ""
    is_found = os.path.realpath(found) == os.path.realpath(started)
    return "t2i" if is_found or pathlib.Path(started).stem != "t2i" else started
