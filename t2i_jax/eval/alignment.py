"""The fraction of generated images that show what their captions say, by a judge that looks at the
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from t2i_jax.errors import UserError


class Judge(Protocol):
    """Tells for each image whether it shows what its caption says."""

    def judge(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Bool (N,), from uint8 images and as many captions."""
        ...


def alignment(images_NHWC: np.ndarray, captions: Sequence[str], judge: Judge) -> dict[str, Any]:
    """The judge's verdict on images, as a whole and caption by caption.

    Args:
      images_NHWC: uint8.
      captions: one per image; a caption may occur several times.
      judge: with `.judge`; where it has `.parts` too (bool (N,) by property), their fractions are
        reported.

    Returns:
      "alignment": the fraction of right images; "stderr": the standard error of that fraction,
      sqrt(p (1 - p) / N); "right": a list of bools, one per image; "captions": for each different
      caption, in order of first occurrence, {"caption", "right", "of"}; and "parts": the fraction
      that is right of each property, {} if the judge has none.

    Raises:
      UserError: no images, or not one caption per image.
    """
    images_NHWC, captions = np.asarray(images_NHWC), list(captions)
    if images_NHWC.dtype != np.uint8 or images_NHWC.ndim != 4 or not len(images_NHWC):
        raise UserError(
            f"images are {images_NHWC.dtype}{images_NHWC.shape}; give one or more uint8 images as "
            "(N, H, W, C)."
        )
    if len(images_NHWC) != len(captions):
        raise UserError(
            f"{len(images_NHWC)} images and {len(captions)} captions; give one caption per image."
        )
    right = np.asarray(judge.judge(images_NHWC, captions), bool)
    measure = getattr(judge, "parts", lambda images, captions: {})
    parts = measure(images_NHWC, captions)
    fraction = float(np.mean(right))
    return {
        "alignment": fraction,
        "stderr": float(np.sqrt(fraction * (1 - fraction) / len(right))),
        "right": right.tolist(),
        "captions": _by_caption(captions, right),
        "parts": {name: float(np.mean(verdicts)) for name, verdicts in parts.items()},
    }


def _by_caption(captions, right):
    found = {caption: {"caption": caption, "right": 0, "of": 0} for caption in captions}
    for caption, is_right in zip(captions, right):
        found[caption]["right"] += int(is_right)
        found[caption]["of"] += 1
    return list(found.values())
