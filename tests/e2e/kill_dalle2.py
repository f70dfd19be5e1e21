"""DALL-E 2, killed within its prior's training: `python -m tests.e2e.kill_dalle2 WORKDIR`."""

import os
import pathlib
import signal
import sys
import time

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.train.loop import Hook
from tests.e2e import tiny_dalle2

KILLED_AFTER = 3  # steps of the prior, which saves every second one


def main(workdir: pathlib.Path) -> None:
    """Trains until the process is killed."""

    def hooks(recipe, build_system):
        def kill(state, step, log):
            # saved in the background
            while not (workdir / "prior" / "checkpoints" / "2").is_dir():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        return (Hook(KILLED_AFTER, kill),) if isinstance(recipe.task, t2i.PriorTask) else ()

    runs.train(tiny_dalle2.get_config(), workdir, hooks=hooks)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
