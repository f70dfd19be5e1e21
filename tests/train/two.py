"""One of two processes that train together: `python -m tests.train.two RANK PORT WORKDIR stop|go`."""

import os
import signal
import sys
import time

import jax

from t2i_jax.train.loop import Hook, Preempted, TrainConfig, fit
from tests.train.toy import ToyBatches, ToyTask

CONFIG = TrainConfig(steps=24, batch_size=16, save_every=5, log_every=1)


class Half(ToyBatches):
    """This process's rows of every batch."""

    def __next__(self):
        batch, rows = super().__next__(), slice(8 * jax.process_index(), 8 * jax.process_index() + 8)
        return {name: value[rows] for name, value in batch.items()}


if __name__ == "__main__":
    rank, port, workdir, end = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(rank))

    def stop(state, step, log):
        time.sleep(0.05)
        if end == "stop" and step == 2 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    config = TrainConfig(**{**vars(CONFIG), "mesh": {"fsdp": 2}, "rules": "fsdp"})
    try:
        fit(ToyTask(), Half(), config, workdir, hooks=(Hook(1, stop),))
    except Preempted:
        sys.exit(75)
