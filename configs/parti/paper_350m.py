"""Parti 350M at the sizes of the paper (Yu et al. 2022, section 2 and table 1), on stored image
tokens. Not yet run.

    t2i compile configs/parti/paper_350m.py --topology v4:4x4x8
    t2i data pack folder:photos packed --size 256 && t2i data encode-images packed runs/vit_vqgan
    t2i train configs/parti/paper_350m.py tokenizer=runs/vit_vqgan

Batch 8192 of 1024 tokens; data parallel with the parameters split too.
"""

import dataclasses

from t2i_jax import (
    DataConfig,
    Evaluation,
    OptimConfig,
    PartiOptions,
    PartiTask,
    Recipe,
    TrainConfig,
)
from t2i_jax.models.parti_transformer import PARTI_350M


def get_config() -> Recipe:
    """The recipe of one row of table 1; those of the others are made of it."""
    text, decoder = PARTI_350M
    return Recipe(
        task=PartiTask(
            model=decoder.clone(dtype="bfloat16", remat="attention"),
            text=dataclasses.replace(text, dtype="bfloat16", remat="full"),
            stored_tokens=True,
        ),
        data=DataConfig(source="arrayrecord:packed", image_size=256, workers=8),
        train=TrainConfig(
            steps=450_000,
            batch_size=8192,
            ema_decay=0.0,
            mesh={"data": -1, "fsdp": 16},
            optim=OptimConfig(
                name="adafactor",
                learning_rate=4.5e-5,
                warmup_steps=5000,
                schedule="exponential",
                decay_from=85_000,
                end_ratio=0.025,
                b1=0.9,
                b2=0.96,
                weight_decay=4.5e-2,
                clip_norm=4.0,
            ),
            save_every=5000,
            eval_every=10_000,
        ),
        evaluation=Evaluation(options=PartiOptions(guidance=1.2)),
    )
