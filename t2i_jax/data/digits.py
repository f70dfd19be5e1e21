"""The built-in dataset `digits`: the 1,797 scans of handwritten digits that come with
scikit-learn, with captions.

The scans (8 x 8, 17 levels of gray) are the test set of the "Optical Recognition of Handwritten
Digits" data of Alpaydin and Kaynak (UCI, 1998). Every fifth scan is held out.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import pathlib

import numpy as np
from PIL import Image

from t2i_jax.config import one_of
from t2i_jax.data.source import Source
from t2i_jax.errors import UserError

SPLITS = ("train", "heldout")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORDINGS = (
    "a handwritten {word}",
    "the digit {figure}",
    "a handwritten {figure}",
    "the number {word} written by hand",
    "a picture of the digit {word}",
)


class Digits(Source):
    """Random access to the set: `digits[i]` is {"image": HWC uint8, dark ink on white, "caption":
    str}.

    Args:
      image_size: side of the images in pixels, at least 8; the scans are enlarged with bicubic
        interpolation.
      split: "train" (1,437 scans) or "heldout" (360).
      seed: of the wording of the captions.
    """

    def __init__(self, image_size: int = 16, split: str = "train", seed: int = 0):
        one_of("split", split, SPLITS)
        if image_size < 8:
            raise UserError(f"image_size={image_size} is smaller than the scans; use 8 or more.")
        self.image_size, self.split, self.seed = image_size, split, seed
        scans_NHW, self.labels = _scans(split)
        self._images = np.stack([_enlarge(scan_HW, image_size) for scan_HW in scans_NHW])
        self._captions = _captions(self.labels, seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return self.without_image(index) | {"image": self._images[index]}

    def without_image(self, index: int) -> dict:
        """The record with "image" None."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {"image": None, "caption": self._captions[index]}


@functools.cache
def _scans(split):
    """(N, 8, 8) float, 0 paper to 16 ink, and the digits."""
    images, labels = _file()
    kept_back = np.arange(len(labels)) % 5 == 0
    chosen = kept_back if split == "heldout" else ~kept_back
    return images[chosen].reshape(-1, 8, 8), labels[chosen]


def _file():
    """scikit-learn's file, read without importing the package, which takes a second."""
    package = importlib.util.find_spec("sklearn")
    homes = (package and package.submodule_search_locations) or ()
    for path in (pathlib.Path(home, "datasets", "data", "digits.csv.gz") for home in homes):
        if path.is_file():
            with gzip.open(path, "rt") as file:
                table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(int)
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def _enlarge(scan_HW, size):
    gray = np.rint(255 - scan_HW * (255 / 16)).astype(np.uint8)
    large = np.asarray(Image.fromarray(gray).resize((size, size), Image.Resampling.BICUBIC))
    return np.repeat(large[..., None], 3, axis=-1)


def _captions(labels, seed):
    wordings = np.random.default_rng(seed).integers(len(_WORDINGS), size=len(labels))
    return [
        _WORDINGS[w].format(word=WORDS[digit], figure=digit) for w, digit in zip(wordings, labels)
    ]
