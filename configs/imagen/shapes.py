"""Imagen with DDPM on the built-in dataset `shapes`: images of 16 pixels, then of 32.

    t2i train configs/imagen/shapes.py

18 minutes on two cores; docs/evaluation.md has results.
"""

import dataclasses

from t2i_jax import (
    DataConfig,
    Ddpm,
    Evaluation,
    ImagenOptions,
    ImagenTask,
    LearnedText,
    LowresNoise,
    OptimConfig,
    Recipe,
    Stage,
    TrainConfig,
    Unet,
)


def get_config() -> Recipe:
    """Both stages in one run, an update of each in every step."""
    text = LearnedText(
        dim=128, depth=2, heads=4, mlp_dim=512, vocab_size=256, max_length=16, causal=True
    )
    common = dict(
        dim=32,
        dim_mults=(1, 2),
        num_resnet_blocks=1,
        memory_efficient=True,
        attn_heads=4,
        attn_dim_head=32,
        attn_pool_text=False,
        max_text_len=text.max_length,
        cond_dim=128,
        init_cross_embed_kernel_sizes=(3, 7),
    )
    base = Unet(layer_attns=True, layer_cross_attns=True, **common)
    larger = Unet(layer_attns=False, layer_cross_attns=False, **common)
    noise = Ddpm(objective="v", weighting="plain")
    # noise levels at which so small an image is decided
    layout = dataclasses.replace(noise, shift=-2.5)
    # the small image shows nearly everything
    near = LowresNoise(per_row=True, sample_level=0.02, train_limit=0.2)
    return Recipe(
        task=ImagenTask(
            stages=(
                Stage(base, image_size=16, noise=layout),
                Stage(larger, image_size=32, noise=noise, crop_size=16, lowres=near),
            ),
            text=text,
        ),
        data=DataConfig(source="shapes", image_size=32),
        train=TrainConfig(
            steps=2600,
            batch_size=64,
            ema_decay=0.99,
            optim=OptimConfig(
                name="muon",
                learning_rate=1e-3,
                matrix_rate=0.004,
                warmup_steps=100,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=0.01,
            ),
        ),
        evaluation=Evaluation(
            judge="shapes",
            pictures=400,
            completions=100,
            options=ImagenOptions(guidance=(3.0, 1.0), sampler="dpm_solver", steps=24),
        ),
    )
