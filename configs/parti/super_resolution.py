"""Super-resolution of drawn shapes from 32 to 64 pixels: behind Parti it doubles the images of the
quickstart.

    t2i train configs/parti/super_resolution.py --workdir runs/larger
    t2i sample runs/quickstart "a red circle above a blue square" --upscale runs/larger
"""

from t2i_jax import (
    DataConfig,
    OptimConfig,
    Recipe,
    SuperResolution,
    SuperResolutionTask,
    TrainConfig,
)


def get_config() -> Recipe:
    """Images alone; for photographs take the defaults of `SuperResolution` and a longer run."""
    return Recipe(
        task=SuperResolutionTask(SuperResolution(scale=2, blocks=2, channels=24), image_size=64),
        data=DataConfig(source="shapes", image_size=64),
        train=TrainConfig(
            steps=400,
            batch_size=16,
            ema_decay=0.99,
            optim=OptimConfig(
                learning_rate=2e-3, warmup_steps=20, schedule="cosine", end_ratio=0.02
            ),
        ),
    )
