"""`t2i quickstart`: the whole way on the built-in dataset, in minutes on two CPU cores."""

from __future__ import annotations

import pathlib


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
    print(
        f'done: open {workdir / "report.html"}, or run  t2i sample {workdir} "a red circle above a '
        'blue square"'
    )
