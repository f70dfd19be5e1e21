"""Muse on shapes, so small that only the way through is tested."""

import dataclasses

from t2i_jax import (
    DataConfig,
    Evaluation,
    LearnedText,
    MaskGitOptions,
    MaskGitTask,
    MaskGitTransformer,
    MuseOptions,
    MuseTask,
    Recipe,
    TokenCritic,
    TokenizerTask,
    TrainConfig,
    VQGanVAE,
)

TOKENIZER = VQGanVAE(
    dim=8,
    image_size=16,
    layers=2,
    layer_mults=(1, 1),
    resnet_groups=2,
    first_conv_kernel_size=3,
    codebook_size=16,
)


def get_config() -> Recipe:
    """The tokenizer, then MaskGIT at 8 pixels with a critic, then at 16 pixels."""
    data = DataConfig(source="shapes", image_size=16, threads=0)
    plain = TrainConfig(steps=4, batch_size=8, log_every=2, save_every=2, ema_decay=0.0)
    train = dataclasses.replace(plain, ema_decay=0.5)  # an average is compiled for one stage
    text = LearnedText(dim=16, depth=1, heads=2, mlp_dim=16, vocab_size=64, max_length=12)
    network = MaskGitTransformer(dim=16, depth=1, heads=2, dim_head=8, ff_mult=1)
    critic = TokenCritic(dim=16, depth=1, heads=2, dim_head=8, ff_mult=1)

    def stage(size, train, **fields):
        task = MaskGitTask(network, text, TOKENIZER, image_size=size, **fields)
        options = MaskGitOptions(steps=2)
        of = DataConfig(source="shapes", image_size=size, threads=0)
        return Recipe(
            task, of, train, evaluation=Evaluation(pictures=4, preview=4, options=options)
        )

    return Recipe(
        task=MuseTask(tokenizer=TOKENIZER),
        data=data,
        parts={
            "tokenizer": Recipe(task=TokenizerTask(model=TOKENIZER), data=data, train=plain),
            "base": stage(8, train, critic=critic),
            "superres": stage(16, plain, cond_image_size=8),
        },
        evaluation=Evaluation(
            judge="shapes",
            pictures=4,
            completions=4,
            preview=4,
            options=MuseOptions(steps=2, superres_steps=2),
        ),
    )
