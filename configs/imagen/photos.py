"""Imagen on a folder of captioned photographs: 64 pixels, then 256, with a frozen T5.

At full length not yet run.

    t2i train configs/imagen/photos.py --workdir runs/photos data.source=folder:photos
"""

from t2i_jax import (
    DataConfig,
    Ddpm,
    Evaluation,
    ImagenOptions,
    ImagenTask,
    OptimConfig,
    Recipe,
    Stage,
    T5Text,
    TrainConfig,
    Unet,
)


def get_config() -> Recipe:
    """Sizes for one accelerator; `BaseUnet64` and `SRUnet256` are those of the paper."""
    base = Unet(
        dim=128, dim_mults=(1, 2, 3, 4), num_resnet_blocks=3, layer_attns=(False, True, True, True),
        layer_cross_attns=(False, True, True, True), dtype="bfloat16",
    )  # fmt: skip
    larger = Unet(
        dim=64,
        dim_mults=(1, 2, 4, 8),
        num_resnet_blocks=(2, 4, 8, 8),
        layer_attns=(False, False, False, True),
        layer_cross_attns=(False, False, False, True),
        memory_efficient=True,
        dtype="bfloat16",
    )
    return Recipe(
        task=ImagenTask(
            stages=(
                Stage(base, image_size=64, noise=Ddpm(objective="v")),
                Stage(
                    larger,
                    image_size=256,
                    noise=Ddpm(objective="v", schedule="linear"),
                    crop_size=64,
                ),
            ),
            text=T5Text.from_directory("google/t5-v1_1-base"),
        ),
        data=DataConfig(
            source="folder:photos", image_size=256, crop="random", flip=True, heldout=0.05
        ),
        train=TrainConfig(
            steps=200_000,
            batch_size=64,
            ema_decay=0.9999,
            optim=OptimConfig(learning_rate=1e-4, warmup_steps=10_000),
            eval_every=5000,
        ),
        evaluation=Evaluation(options=ImagenOptions(guidance=5.0, sampler="dpm_solver", steps=32)),
    )
