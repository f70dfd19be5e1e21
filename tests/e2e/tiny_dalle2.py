"""DALL-E 2 on shapes, so small that only the way through is tested."""

from t2i_jax import Recipe
from tests.systems import toy_dalle2


def get_config() -> Recipe:
    """CLIP, the prior, and a decoder of 16 pixels."""
    return toy_dalle2.dalle2()
