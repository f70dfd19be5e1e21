"""CLIP ViT-L/14 at the sizes of its paper (Radford et al. 2021, tables 18 and 20), batch 32,768.
Not yet run.

    t2i compile configs/clip/paper_vit_l14.py --topology v4:8x8x4
    t2i data pack folder:photos packed --size 224 && t2i train configs/clip/paper_vit_l14.py

32 epochs of 400 million images. The loss is over the whole batch; its scores are made in blocks.
"""

from t2i_jax import ClipTask, DataConfig, OpenAIClip, OptimConfig, Recipe, TrainConfig


def get_config() -> Recipe:
    """The network of OpenAI's ViT-L/14."""
    network = OpenAIClip(
        embed_dim=768,
        vision_layers=24,
        vision_width=1024,
        vision_patch_size=14,
        transformer_width=768,
        transformer_heads=12,
        dtype="bfloat16",
        remat="full",
    )
    return Recipe(
        task=ClipTask(network),
        data=DataConfig(source="arrayrecord:packed", image_size=224, workers=8),
        train=TrainConfig(
            steps=390_000,
            batch_size=32_768,
            ema_decay=0.0,
            mesh={"data": -1, "fsdp": 8},
            optim=OptimConfig(
                learning_rate=4e-4,
                warmup_steps=2000,
                schedule="cosine",
                b1=0.9,
                b2=0.98,
                eps=1e-6,
                weight_decay=0.2,
            ),
            save_every=5000,
            eval_every=10_000,
        ),
    )
