"""Judges images of handwritten digits against their captions with a classifier that only the
training scans made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.eval.alignment import Judge

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIDE = 8  # of the scans
# mean of an image's ink, from 0 to 16: no scan has less than 2.8, and blank paper shows no digit
_LEAST_INK = 1.0


class JudgeDigits(Judge):
    """Judges whether images show the digit that their captions name.

    The classifier is a support-vector machine fitted to scikit-learn's scans, without every fifth
    one, on first use.

    >>> JudgeDigits().judge(images_NHWC, ["a handwritten three"])    # doctest: +SKIP
    array([ True])
    """

    def judge(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """The verdict per image (uint8, dark ink on white, any size from 8 x 8), a bool: it shows
        the digit of the caption.

        Raises:
          UserError: a caption that does not name exactly one digit, or a wrong form of the images.
        """
        images_NHWC = np.asarray(images_NHWC)
        if images_NHWC.dtype != np.uint8 or images_NHWC.ndim != 4 or images_NHWC.shape[-1] != 3:
            raise UserError(
                f"images are {images_NHWC.dtype}{images_NHWC.shape}; give uint8 images as (N, H, "
                "W, 3)."
            )
        if len(images_NHWC) != len(captions):
            raise UserError(
                f"{len(images_NHWC)} images and {len(captions)} captions; give one caption per "
                "image."
            )
        wanted = np.array([parse(caption) for caption in captions], int)
        if not len(wanted):
            return np.zeros(0, bool)
        ink = np.stack([_ink(image) for image in images_NHWC]).reshape(len(images_NHWC), -1)
        return (_classifier().predict(ink) == wanted) & (ink.mean(axis=1) > _LEAST_INK)


def parse(caption: str) -> int:
    """The digit that a caption names, as a word or a figure."""
    named = re.findall(rf"\b(?:{'|'.join(_WORDS)}|[0-9])\b", caption.lower())
    found = {_WORDS.index(name) if name in _WORDS else int(name) for name in named}
    if len(found) != 1:
        raise UserError(
            f"caption={caption!r} does not name one digit; write it like 'a handwritten three'."
        )
    return found.pop()


@functools.cache
def _classifier():
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    scans, labels = load_digits(return_X_y=True)
    seen = np.arange(len(labels)) % 5 != 0
    return SVC(C=10, gamma=0.001).fit(scans[seen], labels[seen])


def _ink(image_HWC):
    """The ink of an image as a scanner would have given it: (8, 8) float, 0 paper to 16 ink."""
    gray = Image.fromarray(image_HWC).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return (255 - np.asarray(gray, np.float64)) * (16 / 255)
