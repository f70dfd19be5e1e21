"""Plain MaskGIT on digits by class, so small that only the way through is tested."""

import dataclasses

from t2i_jax import (
    ClassLabels,
    DataConfig,
    Evaluation,
    MaskGitOptions,
    MaskGitTask,
    MaskGitTransformer,
    Recipe,
    TokenizerTask,
    TrainConfig,
)
from tests.e2e.tiny_muse import TOKENIZER

NAMES = ("zero, 0", "one, 1", "two, 2", "three, 3", "four, 4", "five, 5", "six, 6", "seven, 7",
         "eight, 8", "nine, 9")  # fmt: skip


def get_config() -> Recipe:
    """The tokenizer, then MaskGIT."""
    data = DataConfig(source="digits", image_size=16, threads=0)
    train = TrainConfig(steps=4, batch_size=8, log_every=2, save_every=2, ema_decay=0.5)
    tokenizer = dataclasses.replace(train, ema_decay=0.0)
    network = MaskGitTransformer(dim=16, depth=1, heads=2, dim_head=8, ff_mult=1)
    return Recipe(
        task=MaskGitTask(network, ClassLabels(NAMES, dim=16), TOKENIZER),
        data=data,
        train=train,
        parts={
            "tokenizer": Recipe(task=TokenizerTask(model=TOKENIZER), data=data, train=tokenizer)
        },
        evaluation=Evaluation(
            judge="digits", pictures=4, preview=4, options=MaskGitOptions(steps=2)
        ),
    )
