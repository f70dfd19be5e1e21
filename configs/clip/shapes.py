"""CLIP on the built-in dataset `shapes`: images of 32 pixels and their captions in one space.

t2i train configs/clip/shapes.py
"""

import t2i_jax as t2i


def get_config() -> t2i.Recipe:
    """Two small transformers, and the loss over batches of 128."""
    network = t2i.CLIP(
        dim_text=96,
        dim_image=96,
        dim_latent=96,
        num_text_tokens=256,
        text_enc_depth=2,
        text_seq_len=16,
        text_heads=3,
        text_dim_head=32,
        visual_enc_depth=3,
        visual_heads=3,
        visual_dim_head=32,
        visual_image_size=32,
        visual_patch_size=8,
        visual_patch_dropout=0.0,
    )
    return t2i.Recipe(
        task=t2i.ClipTask(network),
        data=t2i.DataConfig(source="shapes", image_size=32),
        train=t2i.TrainConfig(
            steps=600,
            batch_size=128,
            ema_decay=0.98,
            eval_every=200,
            optim=t2i.OptimConfig(
                name="muon",
                learning_rate=2e-3,
                warmup_steps=50,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=0.03,
            ),
        ),
        evaluation=t2i.Evaluation(judge="shapes", pictures=100),
    )
