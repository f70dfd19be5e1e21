"""The toy on the embedded shapes: `t2i train tests/toy_system/recipe.py`."""

import t2i_jax as t2i
from t2i_jax.systems import SYSTEMS

SYSTEMS["toy"] = "tests.toy_system"  # the one line that makes the system known


def get_config() -> t2i.Recipe:
    """The mean colour first, in WORKDIR/mean, then the toy."""
    text = t2i.LearnedText(dim=8, depth=1, heads=2, mlp_dim=16, vocab_size=64, max_length=12)
    data = t2i.DataConfig(source="shapes", image_size=8, threads=0)
    train = t2i.TrainConfig(
        steps=4, batch_size=8, log_every=2, save_every=2, eval_every=4, ema_decay=0.5
    )
    return t2i.Recipe(
        task=t2i.ToyTask(t2i.ColourNet(dim=8), text),
        data=data,
        train=train,
        parts={"mean": t2i.Recipe(task=t2i.MeanColourTask(), data=data, train=train)},
        evaluation=t2i.Evaluation(pictures=4, preview=4, options=t2i.ToyOptions(guidance=1.5)),
    )
