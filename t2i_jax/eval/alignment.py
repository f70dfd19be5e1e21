"""The fraction of generated images that show what their captions say, by a judge that looks at the
pixels.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.intervals import wilson

_SIDE = 32  # pixels of the images with which a judge is tried
_TRIED_AT_ONCE = 256


class Judge(abc.ABC):
    """Tells for each image whether it shows what its caption says."""

    @abc.abstractmethod
    def judge(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """The verdict on each image, bool (N,), from uint8 images and as many captions."""

    def parts(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> Mapping[str, np.ndarray]:
        """The verdict on each property that the judge looks at, bool (N,) by name; {}: it has only
        the verdict on the whole.
        """
        return {}

    def tasks(self, captions: Sequence[str]) -> Sequence[str]:
        """The task of each caption; []: it knows no tasks."""
        return []


def check_captions(judge: Judge, captions: Sequence[str]) -> None:
    """Tries a judge on captions, beside blank images.

    Raises:
      UserError: it does not understand one.
    """
    different = list(dict.fromkeys(captions))
    for start in range(0, len(different), _TRIED_AT_ONCE):
        some = different[start : start + _TRIED_AT_ONCE]
        judge.judge(np.full((len(some), _SIDE, _SIDE, 3), 255, np.uint8), some)


def alignment(images_NHWC: np.ndarray, captions: Sequence[str], judge: Judge) -> dict[str, Any]:
    """The judge's verdict on images, as a whole and caption by caption.

    Args:
      images_NHWC: uint8.
      captions: one per image; a caption may occur several times.
      judge: the fractions of its parts, and those of each of its tasks, are reported too.

    Returns:
      "alignment": the fraction of right images; "stderr": the standard error of that fraction,
      sqrt(p (1 - p) / N); "right": a list of bools, one per image; "captions": for each different
      caption, in order of first occurrence, {"caption", "right", "of"}; "parts": the fraction
      that is right of each property, of each task as "task/NAME", and "tasks", the mean over tasks;
      {} if the judge has none; and "tasks": for each task {"right", "of", "low", "high"}, the ends
      of Wilson's 95% interval, {} if the judge knows no tasks.

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
    parts = judge.parts(images_NHWC, captions)
    fraction, tasks = float(np.mean(right)), _by_task(judge, captions, right)
    shares = {f"task/{name}": one["right"] / one["of"] for name, one in tasks.items()}
    if shares:
        shares["tasks"] = float(np.mean(list(shares.values())))
    return {
        "alignment": fraction,
        "stderr": float(np.sqrt(fraction * (1 - fraction) / len(right))),
        "right": right.tolist(),
        "captions": _by_caption(captions, right),
        "parts": {name: float(np.mean(verdicts)) for name, verdicts in parts.items()} | shares,
        "tasks": tasks,
    }


def task_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The share of right images of each task with its interval as a table in Markdown, and the mean
    over tasks, which is how GenEval's score is formed.

    Args:
      tasks: as `alignment` returns them.
    """
    rows = ["| task | right | of | share | 95% interval |", "|---|---|---|---|---|"]
    for name, one in tasks.items():
        share, span = one["right"] / one["of"], f"{one['low']:.3f} to {one['high']:.3f}"
        rows.append(f"| {name} | {one['right']} | {one['of']} | {share:.3f} | {span} |")
    mean = np.mean([one["right"] / one["of"] for one in tasks.values()])
    return "\n".join([*rows, f"| mean of tasks | | | {mean:.3f} | |"])


def _by_task(judge, captions, right):
    names = judge.tasks(captions)
    found = {}
    for name in sorted(set(names)):
        mine = right[[i for i, task in enumerate(names) if task == name]]
        span = wilson(mine)
        count = {"right": int(mine.sum()), "of": len(mine)}
        found[name] = {**count, "low": span.low, "high": span.high}
    return found


def _by_caption(captions, right):
    found = {caption: {"caption": caption, "right": 0, "of": 0} for caption in captions}
    for caption, is_right in zip(captions, right):
        found[caption]["right"] += int(is_right)
        found[caption]["of"] += 1
    return list(found.values())
