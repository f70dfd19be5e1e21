"""MaskGIT by class on the handwritten digits that come with scikit-learn, 16 x 16 pixels, 16
tokens. A caption stands for the digit that it names, as "three", "3" or "a handwritten three".

t2i train configs/muse/digits.py
"""

import dataclasses

import t2i_jax as t2i
from t2i_jax.data.digits import WORDS


def get_config() -> t2i.Recipe:
    """The tokenizer first, in WORKDIR/tokenizer, then MaskGIT."""
    data = t2i.DataConfig(source="digits", image_size=16)
    network = t2i.VQGanVAE(
        dim=32,
        image_size=16,
        layers=2,
        layer_mults=(1, 2),
        codebook_size=1024,
        entropy_loss_weight=0.0,
        commitment_weight=0.25,
        pixel_range=(-1.0, 1.0),
    )
    optim = t2i.OptimConfig(
        name="muon", learning_rate=3e-3, warmup_steps=50, schedule="cosine", end_ratio=0.02
    )
    train = t2i.TrainConfig(steps=350, batch_size=64, ema_decay=0.99, optim=optim)
    names = tuple(f"{word}, {figure}" for figure, word in enumerate(WORDS))
    return t2i.Recipe(
        task=t2i.MaskGitTask(
            model=t2i.MaskGitTransformer(dim=128, depth=4, heads=4, dim_head=32),
            text=t2i.ClassLabels(names, dim=128),
            tokenizer=network,
        ),
        data=data,
        train=dataclasses.replace(
            train,
            steps=900,
            optim=dataclasses.replace(optim, learning_rate=1e-3, weight_decay=0.05),
        ),
        parts={
            "tokenizer": t2i.Recipe(
                task=t2i.TokenizerTask(model=network, l2_weight=1.0), data=data, train=train
            )
        },
        evaluation=t2i.Evaluation(
            judge="digits", pictures=200, options=t2i.MaskGitOptions(steps=8, guidance=2.0)
        ),
    )
