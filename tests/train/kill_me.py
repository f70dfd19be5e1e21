"""A training run in a process of its own: `python -m tests.train.kill_me WORKDIR`.

Exits with 75 when preempted.
"""

import sys

from t2i_jax.train.loop import Preempted, TrainConfig, fit
from t2i_jax.train.validation import Validation
from tests.train.toy import ToyBatches, ToyTask

CONFIG = TrainConfig(steps=16, batch_size=16, save_every=1, log_every=1, keep=2, accumulate=2)
TASK = ToyTask(width=8192)  # about 6 MB in a checkpoint: saving takes longer than a step
# the best step is in the middle, long before the last ones that stay
BEST = 9
VALIDATION = Validation(3, lambda state, frozen: {"loss": abs(int(state.step) - BEST) + 0.5})

if __name__ == "__main__":
    try:
        fit(TASK, ToyBatches(), CONFIG, sys.argv[1], validation=VALIDATION)
    except Preempted:
        sys.exit(75)
