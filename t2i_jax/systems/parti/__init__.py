"""Parti (Yu et al. 2022): captions to image tokens, one after the other, and to images by an image
tokenizer.
"""

NAMES = {
    "PartiTask": "t2i_jax.systems.parti.task",
    "PartiOptions": "t2i_jax.systems.parti.options",
    "PartiSystem": "t2i_jax.systems.parti.system",
}
WEIGHTS = "t2i_jax.systems.parti.weights"
