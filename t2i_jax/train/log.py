"""What a run tells: a progress line, WORKDIR/metrics.jsonl, TensorBoard events and, when asked for, Weights & Biases."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping

import jax
from tqdm import tqdm

from t2i_jax.errors import UserError


class Log:
    """Writes metrics; only process 0 does.

    Attributes:
      workdir: folder of the run.
    """

    def __init__(self, workdir: pathlib.Path, start: int, steps: int, wandb_project: str | None = None):
        self.workdir = workdir
        self._speaks = jax.process_index() == 0
        self._bar = tqdm(total=steps, initial=start, unit="step", desc=workdir.name, disable=not self._speaks)
        if not self._speaks:
            return
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        _forget_after(path, start)
        self._file = path.open("a")
        self._events = SummaryWriter(str(workdir), purge_step=start + 1)
        self._wandb = _start_wandb(wandb_project, workdir) if wandb_project else None

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics of a step; a value that is not finite is null in metrics.jsonl and left out elsewhere."""
        if not self._speaks:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **dict.fromkeys(metrics), **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def progress(self, step: int, shown: Mapping[str, float | str]) -> None:
        """Moves the progress line to a step."""
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def say(self, sentence: str) -> None:
        """Prints a sentence above the progress line."""
        if self._speaks:
            tqdm.write(sentence)

    def close(self) -> None:
        """Finishes the files."""
        self._bar.close()
        if self._speaks:
            self._file.close()
            self._events.close()
            if self._wandb is not None:
                self._wandb.finish()


def _forget_after(path, start):
    """A run that resumes from an earlier checkpoint does the steps after it again: their old lines go."""
    if not path.is_file():
        return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= start]
    if kept != lines:
        half_done = path.with_suffix(".partial")
        half_done.write_text("".join(kept))
        half_done.replace(path)


def _step_of(line):
    """The step of a line; a line that a crash has torn belongs to no step that was saved."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


def _start_wandb(project, workdir):
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"train.wandb_project={project!r} needs Weights & Biases; pip install 't2i_jax[wandb]', or set it to None."
        ) from None
    return wandb.init(project=project, name=workdir.name, dir=str(workdir), resume="allow")
