"""CLIP score: how near each image is to its caption, in the four ways that go by that name."""

from __future__ import annotations

import dataclasses

import numpy as np

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.eval.rows import Rows, check_pair, in_blocks


@dataclasses.dataclass(frozen=True)
class ClipScoring:
    """A way to turn the cosine of an image's and its caption's embedding into a score.

    Attributes:
      prefix: what comes before each caption.
      scale: the cosine is multiplied by this.
      clamp: "each": a negative cosine counts as 0; "mean": a negative mean counts as 0; "none":
        it stays.
      keeps_end: whether a caption that is too long keeps its end token where it is cut; see
        `ClipExtractor.text_features`.
      weights: the CLIP with which this way is used.
      source: who computes it so.
    """

    prefix: str = ""
    scale: float = 1.0
    clamp: str = "none"
    weights: str = ""
    source: str = ""
    keeps_end: bool = True

    def __post_init__(self):
        one_of("clamp", self.clamp, ("each", "mean", "none"))
        if not self.scale > 0:
            raise UserError(f"scale={self.scale} is not above 0; give for example 1 or 100.")


PRESETS = {
    "cosine": ClipScoring(source="mean cosine, as papers of text-to-image models report it"),
    "hessel": ClipScoring(
        "A photo depicts ", 2.5, "each", "ViT-B/32", "Hessel et al. 2021, equation 1"
    ),
    # Reference quirk: it cuts ids, end token included, so that all captions that are too long have
    # one vector, that of the start token.
    "torchmetrics": ClipScoring(
        "", 100.0, "mean", "ViT-L/14", "torchmetrics CLIPScore", keeps_end=False
    ),
    "gigagan": ClipScoring("A photo depicts ", 1.0, "none", "ViT-B/32", "GigaGAN/evaluation"),
}
"""The ways to score that are in use, by name."""


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """A CLIP score.

    Attributes:
      value: the mean over the images.
      values_N: one per image, scaled, clamped where the way clamps each.
    """

    value: float
    values_N: np.ndarray


def clip_score(images_ND: Rows, captions_ND: Rows, scoring: ClipScoring) -> ClipScore:
    """The score of images with a caption each, in float64; a block of embeddings at a time is
    in memory, and one number for each image.

    Args:
      images_ND, captions_ND: embeddings in the space that both share, not necessarily of unit
        length.

    Raises:
      UserError: not one caption for each image, embeddings that are zero or not finite.
    """
    check_pair(images_ND, captions_ND)
    if len(images_ND) != len(captions_ND):
        raise UserError(
            f"{len(images_ND)} images and {len(captions_ND)} captions; give one caption for each "
            "image."
        )
    pairs = zip(in_blocks(images_ND), in_blocks(captions_ND), strict=True)
    values_N = np.concatenate(
        [_scaled_cosines(x_BD, y_BD, scoring.scale) for (_, x_BD), (_, y_BD) in pairs]
    )
    if scoring.clamp == "each":
        values_N = np.maximum(values_N, 0)
    value = float(values_N.mean())
    return ClipScore(max(value, 0.0) if scoring.clamp == "mean" else value, values_N)


def _scaled_cosines(x_BD, y_BD, scale):
    lengths_B = np.linalg.norm(x_BD, axis=1) * np.linalg.norm(y_BD, axis=1)
    if not lengths_B.all():
        raise UserError("an embedding is zero; look at what the extractor was given.")
    return scale * (x_BD * y_BD).sum(axis=1) / lengths_B
