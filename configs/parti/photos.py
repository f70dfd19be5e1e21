"""Parti on a folder of captioned photographs: a template to start from, 64 x 64 pixels.

Not yet run at full length.

    t2i train configs/parti/photos.py --workdir runs/photos \\
        data.source=folder:PHOTOS tokenizer.data.source=folder:PHOTOS

PHOTOS holds images with .txt files of the same name, or a captions.csv. Pack thousands of images
first: `t2i data pack folder:PHOTOS packed`, then both sources are arrayrecord:packed.
"""

from t2i_jax import (
    DataConfig,
    Evaluation,
    LearnedText,
    OptimConfig,
    PartiTask,
    PartiTransformer,
    Recipe,
    TokenizerTask,
    TrainConfig,
    VitVQGanVAE,
)


def get_config() -> Recipe:
    """The tokenizer first, in WORKDIR/tokenizer, then Parti."""
    data = DataConfig(source="folder:photos", image_size=64, crop="random", heldout=0.05)
    network = VitVQGanVAE(
        dim=128,
        image_size=64,
        patch_size=8,
        layers=2,
        heads=4,
        codebook_size=4096,
        entropy_loss_weight=0.0,
        commitment_weight=0.25,
        pixel_range=(-1.0, 1.0),
    )
    tokenizer = Recipe(
        task=TokenizerTask(model=network, l2_weight=1.0),
        data=data,
        train=TrainConfig(
            steps=20_000,
            batch_size=32,
            optim=OptimConfig(learning_rate=1e-3, warmup_steps=500, schedule="cosine"),
        ),
    )
    optim = OptimConfig(
        learning_rate=5e-4, warmup_steps=1000, schedule="cosine", weight_decay=0.045
    )
    return Recipe(
        task=PartiTask(
            model=PartiTransformer(dim=256, depth=6, heads=4, mlp_dim=1024),
            text=LearnedText(
                dim=256, depth=2, heads=4, mlp_dim=1024, vocab_size=8000, max_length=48
            ),
            tokenizer=network,
        ),
        data=data,
        train=TrainConfig(steps=50_000, batch_size=32, optim=optim, eval_every=2000),
        parts={"tokenizer": tokenizer},
        evaluation=Evaluation(pictures=32),
    )
