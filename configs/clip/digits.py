"""CLIP on the built-in dataset `digits`: handwritten digits and their names.

t2i train configs/clip/digits.py
"""

import t2i_jax as t2i


def get_config() -> t2i.Recipe:
    """Two small transformers; digits that were never seen are told by the names of their class."""
    network = t2i.CLIP(
        dim_text=64,
        dim_image=64,
        dim_latent=64,
        num_text_tokens=128,
        text_enc_depth=1,
        text_seq_len=16,
        text_heads=2,
        text_dim_head=32,
        visual_enc_depth=2,
        visual_heads=2,
        visual_dim_head=32,
        visual_image_size=16,
        visual_patch_size=4,
        visual_patch_dropout=0.25,
    )
    return t2i.Recipe(
        task=t2i.ClipTask(network),
        data=t2i.DataConfig(source="digits", image_size=16),
        train=t2i.TrainConfig(
            steps=600,
            batch_size=128,
            ema_decay=0.98,
            optim=t2i.OptimConfig(
                name="muon",
                learning_rate=2e-3,
                warmup_steps=50,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=0.03,
            ),
        ),
        evaluation=t2i.Evaluation(judge="digits", pictures=360),
    )
