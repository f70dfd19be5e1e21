"""The contrastive losses of CLIP between views of captions and views of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from t2i_jax.config import one_of, some_of
from t2i_jax.models.image_text import Features, masked_mean, unit
from t2i_jax.nn import contrastive
from t2i_jax.types import Array, Params

LOSSES = ("softmax", "sigmoid")
# "filip_image_to_text": with tokens compared one by one, the loss of images is a softmax over
# images, not over texts, as in x-clip (x_clip.py, the denominators of `forward`).
COMPATS = ("filip_image_to_text",)


class Contrast(NamedTuple):
    """The contrastive loss of one pair of views, and of all further pairs.

    Attributes:
      main: of the captions and images themselves. further: the mean over all other pairs of views;
        0 where there are none. hits_text, hits_image: share of the captions (images) whose own
        image (caption) scores highest in the batch.
    """

    main: Array
    further: Array
    hits_text: Array
    hits_image: Array


@dataclasses.dataclass(frozen=True)
class Latents:
    """l2-normalised latents of one view.

    Attributes:
      own: one per row (B, D), or one per token or patch (B, N, D).
      extra: those of the second projections; `own` where there are none.
      mask_BN: True at tokens; None: everywhere, or one per row.
    """

    own: Array
    extra: Array
    mask_BN: Array | None = None


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The contrastive loss of a network.

    Attributes:
      network: an `ImageText`. kind: "softmax" (Radford et al. 2021) or "sigmoid" (Zhai et al.
        2023).
      decoupled: own partners are left out of the sums (Yeh et al. 2021).
      rows: rows of a block of scores; None: as many as 64 MiB of scores on each device allow.
      compat: behaviours of x-clip that are wrong, see `COMPATS`.
    """

    network: Any
    kind: str = "softmax"
    decoupled: bool = False
    rows: int | None = None
    compat: tuple[str, ...] = ()

    def __post_init__(self):
        one_of("contrast", self.kind, LOSSES)
        some_of("compat", self.compat, COMPATS)

    @property
    def by_tokens(self) -> bool:
        """Whether tokens and patches are compared one by one."""
        return getattr(self.network, "use_all_token_embeds", False)

    @property
    def has_extra(self) -> bool:
        """Whether image-to-text has projections of its own."""
        return getattr(self.network, "extra_latent_projection", False)

    def text(self, params: Params, features: Features) -> Latents:
        """The latents of captions."""
        if self.by_tokens:
            features = self.network.compared_tokens(features)
        return self._latents(self.network.project_text, params, features)

    def image(self, params: Params, features: Features) -> Latents:
        """The latents of images."""
        if self.by_tokens:
            features = self.network.compared_patches(features)
        return self._latents(self.network.project_image, params, features)

    def __call__(
        self, params: Params, texts: Sequence[Latents], images: Sequence[Latents]
    ) -> Contrast:
        """The losses between every view of the captions and every view of the images; the first
        of each are the captions and images themselves.
        """
        pairs = [self._pair(params, text, image) for text in texts for image in images]
        losses = [(jnp.mean(of_text.nats_B) + jnp.mean(of_image.nats_B)) / 2
                  for of_text, of_image in pairs]  # fmt: skip
        further = jnp.mean(jnp.stack(losses[1:])) if losses[1:] else jnp.float32(0)
        of_text, of_image = pairs[0]
        return Contrast(losses[0], further, jnp.mean(of_text.hit_B), jnp.mean(of_image.hit_B))

    def regulariser(self, text: Latents, image: Latents) -> Array:
        """The mean squared difference of similarities within captions and within images
        (arXiv 2309.08773), averaged over both pairs of projections where there are two. Tokens are
        compared by their mean.
        """
        found = [
            contrastive.similarity_regulariser(
                _whole(one, text.mask_BN), _whole(other, image.mask_BN), self.rows
            )
            for one, other in ((text.own, image.own), (text.extra, image.extra))
        ]
        return (found[0] + found[1]) / 2

    def _latents(self, project, params, features):
        one = features.tokens_BNE if self.by_tokens else features.pooled_BE
        own = project(params, one)
        extra = project(params, one, True) if self.has_extra else own
        return Latents(own, extra, features.mask_BN if self.by_tokens else None)

    def _pair(self, params, text, image):
        """(matches of the captions, matches of the images)."""
        scale = jnp.exp(self.network.log_scale(params))
        if not self.by_tokens:
            rows = [
                (contrastive.cosine, text.own, image.own),
                (contrastive.cosine, image.extra, text.extra),
            ]
        else:
            mask_BT = text.mask_BN
            rows = [(contrastive.text_by_tokens, (text.own, mask_BT), image.own)]
            if "filip_image_to_text" in self.compat:
                rows.append((_by_patches_of_texts, (text.extra, mask_BT), image.extra))
            else:
                rows.append((contrastive.image_by_patches, image.extra, (text.extra, mask_BT)))
        return [self._matches(params, scale, *one) for one in rows]

    def _matches(self, params, scale, scores, query, key):
        if self.kind == "sigmoid":
            bias = self.network.bias(params)
            return contrastive.sigmoid(scores, query, key, scale, bias, self.rows)
        return contrastive.cross_entropy(
            scores, query, key, scale, decoupled=self.decoupled, rows=self.rows
        )


def _by_patches_of_texts(text, image_BID):
    """`image_by_patches` with a row per text."""
    return contrastive.image_by_patches(image_BID, text).T


def _whole(latents, mask_BN):
    """(B, D) l2-normalised latents of whole captions or images."""
    return latents if latents.ndim == 2 else unit(masked_mean(latents, mask_BN))
