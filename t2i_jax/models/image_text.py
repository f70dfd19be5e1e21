"""The interface of networks that embed images and captions in one space, as CLIP does (Radford et
al. 2021).

A task that has such a network as its part (`Part(ClipTask, "clip")`) gets it as `Given.network`
and its parameters as `Given.weights["clip"]`. Token ids of captions come as for every other task:
its `text_encoder` is `network.captions`, for which each batch holds "text" and "text_mask", and
its `prepare_text` copies the vocabulary of the trained part into the run:

    trains_vocabulary = False

    @property
    def text_encoder(self):
        return None if self.clip is None else self.clip.captions

    def prepare_text(self, folder, captions, parts):
        parts["clip"].system.save_vocabulary(folder)

    # in the step
    text = self.clip.embed_text(frozen["clip"]["clip"], batch["text"], batch["text_mask"])
    image_BD = self.clip.embed_image(frozen["clip"]["clip"], to_float(batch["image"], SIGNED))
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from t2i_jax.text.caption_ids import CaptionIds
from t2i_jax.types import Array, Key, Params

MOST_SCALE = 4.6052  # log 100, the largest log of the scale (Radford et al. 2021, section 2.5)


class TextEmbedding(NamedTuple):
    """Embeddings of captions in the joint space, and the encodings of their tokens.

    Attributes:
      embed_BD: l2-normalised float32. encodings_BLE: one float32 vector per token, before the
        projection; rows at padding are zero. mask_BL: True at tokens.
    """

    embed_BD: Array
    encodings_BLE: Array
    mask_BL: Array


class Features(NamedTuple):
    """The output of a network of one modality, before the projection to the joint space.

    Attributes:
      pooled_BE: one vector for the whole. tokens_BNE: one per token or patch, the class token not
        among them. mask_BN: True at tokens; None: everywhere.
    """

    pooled_BE: Array
    tokens_BNE: Array
    mask_BN: Array | None = None


class ImageText(Protocol):
    """A network that embeds images and captions in one space; a frozen dataclass of plain fields.

    Attributes:
      width: D of the joint space. text_width: E of the encodings of text tokens.
      image_size: side in pixels of the images that it sees; images of other sizes are resized.
      channels: of the images. text_length: tokens of a caption at most. vocab_size: rows of the
        token embedding.
      captions: how captions become the ids that `embed_text` takes.
      hides_by_mask: whether a token within a caption that its mask leaves out is as good as not
        there; else only those at the end are.
    """

    @property
    def width(self) -> int:
        """D of the joint space."""
        ...

    @property
    def text_width(self) -> int:
        """E of the encodings of text tokens."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images."""
        ...

    @property
    def text_length(self) -> int:
        """Tokens of a caption at most."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        ...

    @property
    def captions(self) -> CaptionIds:
        """The encoder from captions to token ids."""
        ...

    @property
    def hides_by_mask(self) -> bool:
        """Whether the mask hides any token of a caption."""
        ...

    def init(self, key: Key) -> Params:
        """First parameters, boxed with their logical axes."""
        ...

    def embed_image(self, params: Params, image_BHWC: Array) -> Array:
        """(B, D) float32, l2-normalised, of float images in [-1, 1] of any size; nothing is drawn
        at random.
        """
        ...

    def embed_text(self, params: Params, text_BL: Array, mask_BL: Array) -> TextEmbedding:
        """The embeddings of token ids, L at most `text_length`."""
        ...

    def image_features(self, params: Params, image_BHWC: Array, key: Key | None = None) -> Features:
        """The features of float images in [-1, 1] that `project_image` takes.

        Args:
          key: for patch dropout; None: every patch is seen.
        """
        ...

    def text_features(self, params: Params, text_BL: Array, mask_BL: Array) -> Features:
        """The features of token ids that `project_text` takes."""
        ...

    def project_image(self, params: Params, features: Array, extra: bool = False) -> Array:
        """l2-normalised float32 latents (..., D) of pooled features or of tokens.

        Args:
          extra: by the second pair of projections, where there is one.
        """
        ...

    def project_text(self, params: Params, features: Array, extra: bool = False) -> Array:
        """l2-normalised float32 latents (..., D) of features of text; arguments as of
        `project_image`.
        """
        ...

    def log_scale(self, params: Params) -> Array:
        """The logarithm of the factor of similarities (inverse temperature), at most log 100."""
        ...

    def clamped(self, params: Params) -> Params:
        """The parameters with the logarithm of the scale at most log 100."""
        ...


class DualEncoder:
    """The base of `ImageText` networks that are made of two Flax transformers.

    A subclass has the Flax module as `network`, `logit_bias` as a field, and the features and
    projections.

    Attributes:
      scale_name: of the parameter that is the logarithm of the scale.
    """

    scale_name: ClassVar[str]

    network: Any
    logit_bias: Any
    image_features: Any
    text_features: Any
    project_image: Any
    project_text: Any

    def embed_image(self, params: Params, image_BHWC: Array) -> Array:
        """(B, D) float32, l2-normalised, of float images in [-1, 1] of any size."""
        return self.project_image(params, self.image_features(params, image_BHWC).pooled_BE)

    def embed_text(self, params: Params, text_BL: Array, mask_BL: Array) -> TextEmbedding:
        """The embeddings of token ids; rows of the encodings at padding are zero."""
        features = self.text_features(params, text_BL, mask_BL)
        encodings_BLE = jnp.where(mask_BL[..., None], features.tokens_BNE, 0)
        embed_BD = self._embedded(params, features, mask_BL)
        return TextEmbedding(embed_BD, encodings_BLE, mask_BL)

    def bias(self, params: Params) -> Array:
        """The bias that is added to scaled similarities; 0 where none is learnt."""
        return params["logit_bias"] if self.logit_bias is not None else jnp.float32(0)

    def log_scale(self, params: Params) -> Array:
        """The logarithm of the factor of similarities (inverse temperature), at most log 100."""
        scale = params[self.scale_name].astype(jnp.float32)
        return jnp.where(scale > MOST_SCALE, MOST_SCALE, scale)  # whole gradient at the limit

    def clamped(self, params: Params) -> Params:
        """The parameters with the logarithm of the scale at most log 100: beyond, it would have no
        gradient that brings it back.
        """
        scale = jnp.minimum(params[self.scale_name], MOST_SCALE)
        return {**params, self.scale_name: scale}

    def _embedded(self, params, features, mask_BL):
        """(B, D): the caption's embedding, from its features."""
        return self.project_text(params, features.pooled_BE)

    def _features(self, params, *args, method, mask_BN=None):
        """The output of one of the transformers, in float32."""
        pooled_BE, tokens_BNE = self._apply(params, *args, method=method)
        return Features(pooled_BE.astype(jnp.float32), tokens_BNE.astype(jnp.float32), mask_BN)

    def _apply(self, params, *args, method):
        return self.network.apply({"params": params}, *args, method=method)


def with_pooled(features: Features) -> Features:
    """The features with the vector for the whole as first of the tokens, which no mask hides."""
    tokens_BNE = jnp.concatenate([features.pooled_BE[:, None], features.tokens_BNE], axis=1)
    mask_BN = features.mask_BN
    if mask_BN is not None:
        mask_BN = jnp.pad(mask_BN, ((0, 0), (1, 0)), constant_values=True)
    return features._replace(tokens_BNE=tokens_BNE, mask_BN=mask_BN)


def unit(x: Array) -> Array:
    """x in float32, divided by its l2 norm over the last axis (1e-12 at least)."""
    x = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
    return x / norm


def at_size(image_BHWC: Array, size: int) -> Array:
    """Float images resized to (B, size, size, C): cubic, with antialiasing where they shrink; those
    of this size as they are.
    """
    shape = (image_BHWC.shape[0], size, size, image_BHWC.shape[3])
    if image_BHWC.shape == shape:
        return image_BHWC
    return jax.image.resize(image_BHWC.astype(jnp.float32), shape, "cubic", antialias=True)


def masked_mean(x_BNE: Array, mask_BN: Array | None) -> Array:
    """(B, E): the mean over the tokens where the mask is True."""
    if mask_BN is None:
        return jnp.mean(x_BNE, axis=1)
    count_B1 = jnp.maximum(jnp.sum(mask_BN, axis=1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask_BN[..., None], x_BNE, 0), axis=1) / count_B1
