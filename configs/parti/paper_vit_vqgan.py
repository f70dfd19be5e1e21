"""ViT-VQGAN Base at the sizes of the paper (Yu et al. 2021, arXiv 2110.04627): 256 pixels to 1024
tokens. Not yet run.

    t2i compile configs/parti/paper_vit_vqgan.py --topology v4:4x4x8
    t2i train configs/parti/paper_vit_vqgan.py data.source=arrayrecord:packed perceptual=vgg16.pth
"""

from t2i_jax import DataConfig, OptimConfig, Recipe, TokenizerTask, TrainConfig
from t2i_jax.models.stylegan_discriminator import StyleDiscriminator
from t2i_jax.models.vit_vqgan_paper import preset


def get_config() -> Recipe:
    """Batch 256, Adam with a cosine schedule, against a StyleGAN discriminator."""
    return Recipe(
        task=TokenizerTask(
            model=preset(
                "base", image_size=256, patch_size=8, scan=True, remat="attention", dtype="bfloat16"
            ),
            discriminator=StyleDiscriminator(image_size=256, max_width=512, dtype="bfloat16"),
            l1_weight=0.0,
            l2_weight=1.0,
            perceptual_weight=0.1,
            adversarial_weight=0.1,
            adaptive=False,
            gan_loss="softplus",
            penalty="r1",
            penalty_every=16,
        ),
        data=DataConfig(
            source="arrayrecord:packed", image_size=256, crop="random", flip=True, workers=8
        ),
        train=TrainConfig(
            steps=500_000,
            batch_size=256,
            ema_decay=0.999,
            mesh={"data": -1, "fsdp": 8},
            optim=OptimConfig(
                learning_rate=1e-4,
                warmup_steps=50_000,
                schedule="cosine",
                end_ratio=0.5,
                b1=0.9,
                b2=0.99,
                weight_decay=1e-4,
            ),
            save_every=5000,
            eval_every=10_000,
        ),
    )
