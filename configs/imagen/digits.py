"""Imagen on the handwritten digits that come with scikit-learn, 16 x 16 pixels in one stage.

t2i train configs/imagen/digits.py
"""

from t2i_jax import (
    DataConfig,
    Ddpm,
    Evaluation,
    ImagenOptions,
    ImagenTask,
    LearnedText,
    OptimConfig,
    Recipe,
    Stage,
    TrainConfig,
    Unet,
)


def get_config() -> Recipe:
    """One stage."""
    text = LearnedText(dim=64, depth=1, heads=2, mlp_dim=128, vocab_size=64, max_length=16)
    unet = Unet(
        dim=32,
        dim_mults=(1, 2),
        num_resnet_blocks=1,
        layer_attns=(False, True),
        layer_cross_attns=(False, True),
        attn_heads=4,
        attn_dim_head=16,
        attn_pool_text=False,
        max_text_len=16,
        init_cross_embed_kernel_sizes=(3, 7),
    )
    return Recipe(
        task=ImagenTask(stages=(Stage(unet, image_size=16, noise=Ddpm(objective="v")),), text=text),
        data=DataConfig(source="digits", image_size=16),
        train=TrainConfig(
            steps=800,
            batch_size=64,
            ema_decay=0.99,
            optim=OptimConfig(
                name="muon",
                learning_rate=1e-3,
                warmup_steps=50,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=0.01,
            ),
        ),
        evaluation=Evaluation(
            judge="digits",
            pictures=400,
            options=ImagenOptions(guidance=2.0, sampler="dpm_solver", steps=24),
        ),
    )
