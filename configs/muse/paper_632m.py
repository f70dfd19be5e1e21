"""Muse's base model of 632 million parameters (Chang et al. 2023, table 1 and appendix), 256 tokens
of images of 256 pixels, on stored tokens and stored T5-XXL embeddings. Not yet run.

    t2i compile configs/muse/paper_632m.py --topology v4:4x4x2
    t2i data pack folder:photos packed --size 256 && t2i data encode-images packed runs/vqgan
    t2i data encode-text packed --t5 google/t5-v1_1-xxl
    t2i train configs/muse/paper_632m.py tokenizer=runs/vqgan

The paper trains it at batch 512 without model parallelism, with Adafactor and label smoothing 0.1.
"""

from t2i_jax import (
    DataConfig,
    Evaluation,
    MaskGitOptions,
    MaskGitTask,
    OptimConfig,
    Recipe,
    StoredText,
    TrainConfig,
)
from t2i_jax.models.maskgit import MUSE_632M


def get_config() -> Recipe:
    """The recipe of the base model; those of the others are made of it."""
    return Recipe(
        task=MaskGitTask(
            MUSE_632M.clone(dtype="bfloat16", remat="full"),
            StoredText(4096, 128),
            stored_tokens=True,
            label_smoothing=0.1,
        ),
        data=DataConfig(source="arrayrecord:packed", image_size=256, workers=8),
        train=TrainConfig(
            steps=1_500_000,
            batch_size=512,
            ema_decay=0.999,
            mesh={"data": -1, "fsdp": 8},
            optim=OptimConfig(
                name="adafactor",
                learning_rate=1e-4,
                warmup_steps=5000,
                schedule="cosine",
                b1=0.9,
                b2=0.96,
                weight_decay=4.5e-2,
            ),
            save_every=5000,
            eval_every=10_000,
        ),
        evaluation=Evaluation(options=MaskGitOptions()),
    )
