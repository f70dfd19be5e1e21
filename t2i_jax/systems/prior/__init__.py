"""The diffusion prior of DALL-E 2 (Ramesh et al. 2022): from captions to CLIP's embeddings of
images.
"""

NAMES = {
    "PriorTask": "t2i_jax.systems.prior.task",
    "PriorOptions": "t2i_jax.systems.prior.options",
    "PriorSystem": "t2i_jax.systems.prior.system",
}
WEIGHTS = "t2i_jax.systems.prior.weights"
