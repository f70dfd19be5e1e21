"""Super-resolution as in Parti: a network that makes images larger, trained on images alone."""

NAMES = {
    "SuperResolutionTask": "t2i_jax.systems.super_resolution.task",
    "SuperResolutionSystem": "t2i_jax.systems.super_resolution.system",
}
WEIGHTS = None
