"""Further views of the images and captions of a batch, for contrastive losses between all of
them (Li et al. 2022, DeCLIP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Views:
    """The further views of each image and caption of a batch: how many, and how they differ.

    Attributes:
      images, texts: further views of each image and of each caption.
      crop: the least share of the image's side that a view shows, above 0 to 1; the view is
        enlarged to the size of the image.
      flip: whether a view is mirrored half of the time; captions with left and right forbid it.
      brightness: the most by which pixels are shifted, of a range of 2.
      dropped_words: share of the tokens that a view of a caption does without.
    """

    images: int = 1
    texts: int = 0
    crop: float = 0.7
    flip: bool = False
    brightness: float = 0.1
    dropped_words: float = 0.15

    def __post_init__(self):
        if self.images < 0 or self.texts < 0 or self.images + self.texts < 1:
            raise UserError(
                f"views.images={self.images} and views.texts={self.texts} make no further view; "
                "give images=1, or views=None."
            )
        if not 0 < self.crop <= 1:
            raise UserError(f"views.crop={self.crop} is outside (0, 1]; try 0.7.")
        if not 0 <= self.brightness <= 2:
            raise UserError(f"views.brightness={self.brightness} is outside [0, 2]; try 0.1.")
        if not 0 <= self.dropped_words < 1:
            raise UserError(f"views.dropped_words={self.dropped_words} is outside [0, 1); try 0.1.")

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found: dict[str, str] = {}
        if not self.images:
            found = dict.fromkeys(("crop", "flip", "brightness"), "images=0")
        return found if self.texts else {**found, "dropped_words": "texts=0"}

    def of_images(self, image_BHWC: Array, key: Key) -> list[Array]:
        """`images` further views of float images in [-1, 1], of the same shape."""
        return [self._image(image_BHWC, one) for one in jax.random.split(key, self.images)]

    def of_texts(
        self, text_BL: Array, mask_BL: Array, key: Key, by_mask: bool, pad_id: int = 0
    ) -> list[tuple[Array, Array]]:
        """Token ids and masks of `texts` further views of captions, which do without some tokens,
        never the first and the last.

        Args:
          by_mask: these tokens are masked out, for a network that does not see them then, see
            `ImageText.hides_by_mask`; else the ones after them take their places, with padding at
            the end. pad_id: id of padding.
        """
        seen = [self._seen(mask_BL, one) for one in jax.random.split(key, self.texts)]
        return [(text_BL, one) if by_mask else _closed(text_BL, one, pad_id) for one in seen]

    def _image(self, image_BHWC, key):
        batch, height, width, _ = image_BHWC.shape
        for_side, for_place, for_flip, for_light = jax.random.split(key, 4)
        side_B1 = jax.random.uniform(for_side, (batch, 1), minval=self.crop, maxval=1.0)
        place_B2 = jax.random.uniform(for_place, (batch, 2)) * (1 - side_B1)
        rows_BH, columns_BW = (
            place_B2[:, axis : axis + 1] + side_B1 * (jnp.arange(size) + 0.5) / size
            for axis, size in enumerate((height, width))
        )
        if self.flip:
            flipped_B1 = jax.random.bernoulli(for_flip, 0.5, (batch, 1))
            columns_BW = jnp.where(flipped_B1, columns_BW[:, ::-1], columns_BW)
        down_BHR, across_BWC = _weights(rows_BH, height), _weights(columns_BW, width)
        view = jnp.einsum("BHR,BRCX,BWC->BHWX", down_BHR, image_BHWC, across_BWC)
        shift = jax.random.uniform(for_light, (batch, 1, 1, 1), minval=-1.0) * self.brightness
        return jnp.clip(view + shift, -1, 1)

    def _seen(self, mask_BL, key):
        hidden_BL = jax.random.bernoulli(key, self.dropped_words, mask_BL.shape)
        before_BL = jnp.cumsum(mask_BL, axis=1) - mask_BL  # tokens, without the padding
        last_B1 = jnp.sum(mask_BL, axis=1, keepdims=True) - 1
        return mask_BL & ~(hidden_BL & (before_BL > 0) & (before_BL < last_B1))


def _closed(text_BL, seen_BL, pad_id):
    """The tokens that are seen, one after the other from the first place on, and their mask."""
    order_BL = jnp.argsort(~seen_BL, axis=1, stable=True)
    text_BL = jnp.where(seen_BL, text_BL, pad_id)
    return tuple(jnp.take_along_axis(one, order_BL, axis=1) for one in (text_BL, seen_BL))


def _weights(places_BN, size):
    """(B, N, size): bilinear weights of pixels at places between 0 and 1."""
    at_BN1 = jnp.clip(places_BN * size - 0.5, 0, size - 1)[..., None]
    return jnp.maximum(1 - jnp.abs(at_BN1 - jnp.arange(size)), 0)
