"""The decoder of DALL-E 2 at 64 pixels at the sizes of the paper (Ramesh et al. 2022, appendix C,
table 3): 512 channels, multiples 1-2-3-4, three blocks, batch 2048. Not yet run.

    t2i compile configs/dalle2/paper_decoder.py --topology v4:4x4x8
    t2i data pack folder:photos packed --size 64
    t2i data encode-clip packed runs/clip && t2i train configs/dalle2/paper_decoder.py

Embeddings and encodings of CLIP ViT-L/14 are stored. The network is that of dalle2-pytorch with the
paper's channels and blocks, 1.5 billion parameters; the paper's own has 3.5 billion.
"""

from t2i_jax import (
    DataConfig,
    DecoderOptions,
    DecoderStage,
    DecoderTask,
    DecoderUnet,
    DiscreteDdpm,
    Evaluation,
    OptimConfig,
    Recipe,
    StoredText,
    TrainConfig,
)
from t2i_jax.diffusion.learned_variance import LearnedVariance


def get_config() -> Recipe:
    """The recipe of the first stage; those of the others are made of it."""
    unet = DecoderUnet(
        dim=512,
        dim_mults=(1, 2, 3, 4),
        num_resnet_blocks=3,
        cond_on_image_embeds=True,
        cond_on_text_encodings=True,
        cond_dim=512,
        max_text_len=77,
        self_attn=(False, True, True, True),
        attn_dim_head=64,
        init_cross_embed=False,
        dtype="bfloat16",
        remat="full",
    )
    stage = DecoderStage(
        unet,
        image_size=64,
        noise=DiscreteDdpm(1000, schedule="cosine"),
        learned_variance=LearnedVariance(),
        resize="area",
    )
    return Recipe(
        task=DecoderTask((stage,), image_embed_dim=768, text=StoredText(768, 77)),
        data=DataConfig(source="arrayrecord:packed", image_size=64, workers=8),
        train=TrainConfig(
            steps=800_000,
            batch_size=2048,
            ema_decay=0.9999,
            mesh={"data": -1, "fsdp": 8},
            optim=OptimConfig(learning_rate=1.2e-4, b2=0.999, weight_decay=3e-2),
            save_every=5000,
            eval_every=10_000,
        ),
        evaluation=Evaluation(options=DecoderOptions(guidance=2.0)),
    )
