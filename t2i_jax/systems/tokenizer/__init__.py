"""Image tokenizers: images to codes and back, trained alone or against a discriminator."""

NAMES = {
    "TokenizerTask": "t2i_jax.systems.tokenizer.task",
    "TokenizerSystem": "t2i_jax.systems.tokenizer.system",
}
WEIGHTS = "t2i_jax.systems.tokenizer.weights"
