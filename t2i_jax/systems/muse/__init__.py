"""Muse (Chang et al. 2023): MaskGIT from captions, and another that makes its images larger."""

NAMES = {
    "MuseTask": "t2i_jax.systems.muse.task",
    "MuseOptions": "t2i_jax.systems.muse.options",
    "MuseSystem": "t2i_jax.systems.muse.system",
}
WEIGHTS = "t2i_jax.systems.muse.weights"
