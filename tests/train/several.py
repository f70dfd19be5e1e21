"""One of several processes that train the toy task: `python -m tests.train.several WORKDIR [WHAT
PROCESS STEP]`.

WHAT happens to one process after a step: a signal's name (it sends that to itself), "raise", "full"
(the disk); at the start "width" (it is given another configuration) and "elsewhere" (another
folder); "wait" (its data hang until it is asked to stop, which process 0 is); "compile" (SIGTERM
while all of them compile, for minutes); "after" (SIGTERM when it has trained).
"""

import os
import pathlib
import signal
import sys
import threading
import time

import jax

from t2i_jax import sharding
from t2i_jax.cluster import processes
from t2i_jax.errors import Preempted, UserError
from t2i_jax.train.loop import Hook, TrainConfig, fit
from tests.train.toy import ToyBatches, ToyTask

CONFIG = TrainConfig(
    steps=12,
    batch_size=16,
    save_every=5,
    log_every=1,
    mesh={"fsdp": 2, "tensor": -1},
    rules="fsdp_tp",
)
TASK = ToyTask(width=256)  # large enough for each process to save a file of its own


class Rows(ToyBatches):
    """This process's rows of every batch."""

    def __init__(self, hang_at=None):
        super().__init__()
        self.hang_at = hang_at
        rows = sharding.rows_of_processes(sharding.make_mesh(CONFIG.mesh), self.batch_size)
        self.rows = list(rows[jax.process_index()])

    def __next__(self):
        if self.number == self.hang_at:
            time.sleep(100)
        return {
            name: value[self.rows]
            for name, value in super().__next__().items()
            if name != "caption"
        }


def compile_slowly(begun):
    """The step's program is compiled for minutes; `begun()` is called when that begins."""
    compile_now = jax.stages.Lowered.compile

    def slowly(self, **options):
        if "jit_train_step" in self.as_text()[:200]:
            begun()
            time.sleep(150)
        return compile_now(self, **options)

    jax.stages.Lowered.compile = slowly


def main(workdir, what=None, process="0", step="0"):
    with processes.joined():
        here, at = jax.process_index() == int(process), int(step)

        def happen(state, done, log):
            if done == at and what == "wait" and jax.process_index() == 0:
                # when it waits for the other
                threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            if not here or done != at:
                return
            if what == "raise":
                raise OSError("the images are gone")
            if what == "full":
                raise UserError("the disk of 'here' is full; free space.")
            while what == "SIGKILL" and not (pathlib.Path(workdir) / "checkpoints" / "5").is_dir():
                time.sleep(0.01)  # saved in the background
            if what in ("SIGKILL", "SIGTERM", "SIGINT"):
                os.kill(os.getpid(), getattr(signal, what))

        if what == "compile":
            compile_slowly(lambda: here and os.kill(os.getpid(), signal.SIGTERM))
        if here and what == "elsewhere":
            workdir = f"{workdir}-{process}"
        task = ToyTask(width=8) if here and what == "width" else TASK
        batches = Rows(hang_at=at if here and what == "wait" else None)
        fit(task, batches, CONFIG, pathlib.Path(workdir), hooks=(Hook(1, happen),) if what else ())
        if what == "after" and here:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (UserError, Preempted) as error:
        print(f"t2i: {error}", file=sys.stderr)
        sys.exit(error.status)
