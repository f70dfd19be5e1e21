"""CLIP (Radford et al. 2021): images and captions embedded in one space."""

NAMES = {
    "ClipTask": "t2i_jax.systems.clip.task",
    "ClipSystem": "t2i_jax.systems.clip.system",
    "ClipText": "t2i_jax.systems.clip.text",
    "MaskedWords": "t2i_jax.systems.clip.masked_words",
    "Views": "t2i_jax.systems.clip.views",
    "VisualSsl": "t2i_jax.systems.clip.visual_ssl",
}
WEIGHTS = "t2i_jax.systems.clip.weights"
