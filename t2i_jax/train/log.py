"""What a run tells: a progress line, WORKDIR/metrics.jsonl, TensorBoard events and, when asked for, Weights & Biases."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from tqdm import tqdm

from t2i_jax.errors import UserError

# Dense bf16 peak per chip in FLOP/s, from the makers' data sheets.
_PEAKS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12, "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12,
}  # fmt: skip


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
        self._events = SummaryWriter(str(workdir), purge_step=start or None)
        self._wandb = _start_wandb(wandb_project, workdir) if wandb_project else None

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics of a step."""
        if not self._speaks:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

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


def peak_flops() -> float:
    """Peak FLOP/s of all devices of this run; for a kind that is not in the table (a CPU), a matrix product's speed."""
    device = jax.devices()[0]
    for kind, peak in sorted(_PEAKS.items(), key=lambda item: -len(item[0])):
        if device.device_kind.startswith(kind):
            return peak * jax.device_count()
    side = 1024
    x = jnp.ones((side, side))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    start = time.perf_counter()
    for _ in range(5):
        product(x, x).block_until_ready()
    return 5 * 2 * side**3 / (time.perf_counter() - start)


def _forget_after(path, start):
    """A run that resumes from an earlier checkpoint does the steps after it again: their old lines go."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= start]
    if kept != lines:
        half_done = path.with_suffix(".partial")
        half_done.write_text("".join(kept))
        half_done.replace(path)


def _start_wandb(project, workdir):
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"train.wandb_project={project!r} needs Weights & Biases; pip install 't2i_jax[wandb]', or set it to None."
        ) from None
    return wandb.init(project=project, name=workdir.name, dir=str(workdir), resume="allow")
