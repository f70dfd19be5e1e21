"""Previews and metrics of a system that reproduces images: originals above their reproductions, and
PSNR.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from t2i_jax.eval.evaluation import Evaluation
from t2i_jax.eval.grid import grid
from t2i_jax.eval.reconstruction import psnr
from t2i_jax.systems.base import Findings, HeldOut, System

_SIDE = 96  # least height in pixels of an image in a grid


class ImageToImage(System):
    """A system whose `reproduce` makes of images something that should equal them: tokenizers,
    super-resolution.
    """

    def reproduce(self, images: np.ndarray) -> np.ndarray:
        """The reproductions, uint8 of the same shape, of uint8 images (B, H, W, C)."""
        raise NotImplementedError

    def preview(
        self, held_out: HeldOut, evaluation: Evaluation
    ) -> tuple[np.ndarray, Mapping[str, float]]:
        """Rows of originals above rows of reproductions, and `eval/psnr` in dB."""
        images = held_out(evaluation.preview, ("image",))["image"]
        again = self.reproduce(images)
        rows = []
        for i in range(0, len(images), 8):
            row, below = images[i : i + 8], again[i : i + 8]
            told = ["image"] * len(row) + ["reproduced"] * len(row)
            rows.append(grid(np.concatenate([row, below]), len(row), _SIDE, told))
        sheet = _below_each_other(rows)
        return sheet, {"eval/psnr": decibel(images, again)}

    def measure(self, images: np.ndarray) -> Mapping[str, float]:
        """The metrics of uint8 images: `reconstruction_psnr` in dB."""
        return {"reconstruction_psnr": decibel(images, self.reproduce(images))}

    def evaluate(self, held_out: HeldOut, evaluation: Evaluation) -> Findings:
        """`measure` of `evaluation.pictures` held-out images, and a sheet of some of them."""
        images = held_out(evaluation.pictures, ("image",))["image"]
        return Findings(self.measure(images), {"heldout": self.preview(held_out, evaluation)[0]})


def _below_each_other(rows):
    """Sheets of any widths as one, filled up with white."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [
            np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
            for row in rows
        ]
    )


def decibel(images: np.ndarray, again: np.ndarray) -> float:
    """The mean PSNR in dB; a perfect image, whose PSNR is infinite, counts 99."""
    return float(np.mean(np.minimum(psnr(images, again), 99.0)))
