"""DALL-E 2 (Ramesh et al. 2022): captions to image embeddings by a prior, and these to images by a
decoder.
"""

NAMES = {
    "DALLE2Task": "t2i_jax.systems.dalle2.task",
    "DALLE2Options": "t2i_jax.systems.dalle2.options",
    "DALLE2System": "t2i_jax.systems.dalle2.system",
}
WEIGHTS = "t2i_jax.systems.dalle2.weights"
