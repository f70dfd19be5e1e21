"""Muse on the built-in dataset `shapes`: 32 x 32 pixels from captions, and from these 64 x 64.

t2i train configs/muse/shapes.py
"""

import dataclasses

import t2i_jax as t2i


def get_config() -> t2i.Recipe:
    """Two tokenizers, then MaskGIT at 32 pixels, then at 64, each in a folder of its own."""
    small, large = _tokenizer(32), _tokenizer(64)
    text = t2i.LearnedText(dim=128, depth=2, heads=4, mlp_dim=512, vocab_size=256, max_length=20)
    network = t2i.MaskGitTransformer(dim=128, depth=4, heads=4, dim_head=32)
    base = t2i.MaskGitTask(network, text, small)
    superres = t2i.MaskGitTask(
        network.clone(depth=2), text, small, superres_tokenizer=large, cond_image_size=32
    )
    return t2i.Recipe(
        task=t2i.MuseTask(tokenizer=small, superres_tokenizer=large),
        data=_data(64),
        parts={
            "tokenizer": _stage(t2i.TokenizerTask(small, l2_weight=1.0), 32, 400, 3e-3),
            "superres_tokenizer": _stage(t2i.TokenizerTask(large, l2_weight=1.0), 64, 400, 3e-3),
            "base": _stage(base, 32, 3000, 2e-3, weight_decay=0.03),
            "superres": _stage(superres, 64, 900, 2e-3, weight_decay=0.03),
        },
        evaluation=t2i.Evaluation(
            judge="shapes",
            pictures=400,
            completions=200,
            options=t2i.MuseOptions(steps=12, guidance=2.0, plausibility=0.3),
        ),
    )


def _data(size):
    return t2i.DataConfig(source="shapes", image_size=size)


def _tokenizer(size):
    return t2i.VitVQGanVAE(
        dim=64,
        image_size=size,
        patch_size=size // 8,
        layers=1,
        heads=2,
        codebook_size=1024,
        entropy_loss_weight=0.0,
        commitment_weight=0.25,
        pixel_range=(-1.0, 1.0),
    )


def _stage(task, size, steps, learning_rate, **optim):
    train = t2i.TrainConfig(
        steps=steps,
        batch_size=32,
        ema_decay=0.99,
        optim=t2i.OptimConfig(
            name="muon",
            learning_rate=learning_rate,
            warmup_steps=50,
            schedule="cosine",
            end_ratio=0.02,
            **optim,
        ),
    )
    evaluation = t2i.Evaluation()
    if isinstance(task, t2i.MaskGitTask):
        options = t2i.MaskGitOptions(steps=12, guidance=2.0, plausibility=0.3)
        evaluation = t2i.Evaluation(judge="shapes", pictures=400, options=options)
    if getattr(task, "cond_image_size", None):
        evaluation = dataclasses.replace(evaluation, judge=None)
    return t2i.Recipe(task=task, data=_data(size), train=train, evaluation=evaluation)
