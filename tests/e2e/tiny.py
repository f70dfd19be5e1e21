"""Parti on shapes, so small that only the way through is tested."""

import dataclasses

from t2i_jax import (
    DataConfig,
    Evaluation,
    LearnedText,
    PartiTask,
    PartiTransformer,
    Recipe,
    TokenizerTask,
    TrainConfig,
    VitVQGanVAE,
)


def get_config() -> Recipe:
    """The tokenizer first, in WORKDIR/tokenizer, then Parti."""
    data = DataConfig(source="shapes", image_size=16, threads=0)
    network = VitVQGanVAE(
        dim=8,
        image_size=16,
        patch_size=4,
        layers=1,
        heads=1,
        dim_head=8,
        ff_mult=1,
        codebook_size=16,
        pixel_range=(-1.0, 1.0),
    )
    train = TrainConfig(steps=4, batch_size=8, log_every=2, save_every=2, ema_decay=0.5)
    # an average is compiled for one of the two
    tokenizer = Recipe(
        TokenizerTask(model=network), data, dataclasses.replace(train, ema_decay=0.0)
    )
    return Recipe(
        task=PartiTask(
            model=PartiTransformer(dim=16, depth=1, heads=2, mlp_dim=16),
            text=LearnedText(dim=16, depth=1, heads=2, mlp_dim=16, vocab_size=64, max_length=12),
            tokenizer=network,
        ),
        data=data,
        train=train,
        parts={"tokenizer": tokenizer},
        evaluation=Evaluation(judge="shapes", pictures=4, preview=4),
    )
