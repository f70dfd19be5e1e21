"""The diffusion prior at the sizes of the DALL-E 2 paper (Ramesh et al. 2022, appendix C, table 3):
24 layers, 2048 wide, on stored embeddings of CLIP ViT-L/14, batch 4096. Not yet run.

    t2i compile configs/dalle2/paper_prior.py --topology v4:4x4x4
    t2i data pack folder:photos packed --size 224
    t2i data encode-clip packed runs/clip && t2i train configs/dalle2/paper_prior.py
"""

from t2i_jax import (
    DataConfig,
    DiffusionPriorNetwork,
    DiscreteDdpm,
    Evaluation,
    OptimConfig,
    PriorOptions,
    PriorTask,
    Recipe,
    TrainConfig,
)


def get_config() -> Recipe:
    """The recipe of the prior; embeddings are scaled by 17.2."""
    network = DiffusionPriorNetwork(
        dim=2048,
        depth=24,
        heads=32,
        embed_dim=768,
        text_dim=768,
        max_text_len=77,
        dtype="bfloat16",
        remat="full",
    )
    return Recipe(
        task=PriorTask(network, DiscreteDdpm(1000, objective="x_start"), stored=True, scale=17.2),
        data=DataConfig(source="arrayrecord:packed", image_size=224, workers=8),
        train=TrainConfig(
            steps=600_000,
            batch_size=4096,
            ema_decay=0.9999,
            mesh={"data": -1, "fsdp": 8},
            optim=OptimConfig(learning_rate=1.1e-4, b2=0.96, eps=1e-6, weight_decay=6e-2),
            save_every=5000,
            eval_every=10_000,
        ),
        evaluation=Evaluation(options=PriorOptions(steps=64, guidance=2.0)),
    )
