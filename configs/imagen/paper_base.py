"""Imagen's first stage at the sizes of the paper (Saharia et al. 2022, appendix F): 64 pixels,
batch 2048. Not yet run.

    t2i compile configs/imagen/paper_base.py --topology v4:4x4x8
    t2i data encode-text packed --t5 google/t5-v1_1-xxl && t2i train configs/imagen/paper_base.py

Text is stored as embeddings of T5-XXL.
"""

from t2i_jax import (
    BaseUnet64,
    DataConfig,
    Ddpm,
    Evaluation,
    ImagenOptions,
    ImagenTask,
    OptimConfig,
    Recipe,
    Stage,
    StoredText,
    TrainConfig,
)


def get_config() -> Recipe:
    """One stage; the others have recipes of their own."""
    return Recipe(
        task=ImagenTask(
            stages=(
                Stage(
                    BaseUnet64(dtype="bfloat16", remat="full", scan_blocks=True),
                    image_size=64,
                    noise=Ddpm(),
                ),
            ),
            text=StoredText(dim=4096, max_length=128),
        ),
        data=DataConfig(source="arrayrecord:packed", image_size=64, workers=8),
        train=TrainConfig(
            steps=2_500_000,
            batch_size=2048,
            ema_decay=0.9999,
            mesh={"data": -1, "fsdp": 8},
            optim=OptimConfig(name="adafactor", learning_rate=1e-4, warmup_steps=10_000, b2=0.99),
            save_every=5000,
            eval_every=10_000,
        ),
        evaluation=Evaluation(options=ImagenOptions(guidance=1.35)),
    )
