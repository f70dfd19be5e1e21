"""The decoder of DALL-E 2 (Ramesh et al. 2022): image embeddings, and captions, to images."""

NAMES = {
    "DecoderTask": "t2i_jax.systems.decoder.task",
    "DecoderStage": "t2i_jax.systems.decoder.stage",
    "DecoderOptions": "t2i_jax.systems.decoder.options",
    "DecoderSystem": "t2i_jax.systems.decoder.system",
    "Decoder": "t2i_jax.systems.decoder.classes",
}
WEIGHTS = "t2i_jax.systems.decoder.weights"
