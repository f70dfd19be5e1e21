"""Imagen on shapes, so small that only the way through is tested."""

from t2i_jax import (
    DataConfig,
    Ddpm,
    Edm,
    Evaluation,
    ImagenOptions,
    ImagenTask,
    LearnedText,
    Recipe,
    Stage,
    TrainConfig,
    Unet,
)


def get_config() -> Recipe:
    """Two stages, one of each kind of diffusion."""
    unet = Unet(
        dim=8,
        dim_mults=(1,),
        attn_heads=2,
        attn_dim_head=4,
        layer_attns=False,
        layer_cross_attns=True,
        attn_pool_text=False,
        max_text_len=12,
        num_resnet_blocks=0,
        attend_at_middle=False,
        init_cross_embed=False,
        init_conv_kernel_size=3,
    )
    return Recipe(
        task=ImagenTask(
            stages=(
                Stage(unet, image_size=8, noise=Ddpm(objective="v")),
                Stage(unet.clone(memory_efficient=True), image_size=16, noise=Edm()),
            ),
            text=LearnedText(dim=16, depth=1, heads=2, mlp_dim=16, vocab_size=64, max_length=12),
        ),
        data=DataConfig(source="shapes", image_size=16, threads=0),
        train=TrainConfig(steps=4, batch_size=8, log_every=2, save_every=2, ema_decay=0.0),
        evaluation=Evaluation(
            judge="shapes", pictures=4, completions=4, preview=4, options=ImagenOptions(steps=2)
        ),
    )
