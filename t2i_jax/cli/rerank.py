"""The best of several images, as a network that embeds images and captions together ranks them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.ranking import most_similar

SCORES = "scores.tsv"


def check(
    count: int, best_of: int | None, ranker: pathlib.Path | None, captions: int, images: int | None
) -> int:
    """The number of images that are generated for each caption, or for an image.

    Args:
      count: images that are kept. best_of: among how many; None: all are kept. ranker: the run that
        compares them with their captions, or with the image that they vary; None: none. images: how
        many are varied; None: the run varies none.

    Raises:
      UserError: a number to choose from without a ranker or the other way round, a ranker without a
        caption or one image, or a choice among fewer images than are kept.
    """
    if best_of is None and ranker is None:
        return count
    if best_of is None or ranker is None:
        given, missing = ("rerank", "best-of") if best_of is None else ("best-of", "rerank")
        raise UserError(f"--{given} does nothing without --{missing}; give both.")
    if best_of < count:
        raise UserError(f"best_of={best_of} is below count={count}; make it {count} or more.")
    if not captions and images and images > 1:
        raise UserError(
            f"rerank compares with captions or with one image, and --image is given {images} "
            "times; leave --rerank and --best-of out."
        )
    if not captions and not images:
        remedy = "name some" if images is None else "name some, or give --image"
        raise UserError(f"rerank compares images with captions, and there are none; {remedy}.")
    return best_of


def tried(ranker: Any, captions: Sequence[str], each: int, shown: Any = None) -> None:
    """Lets the ranker read what `each` images are compared with, by the programs of `best`, before
    many images are made for it. What there is to say of the captions is said here.

    Args:
      ranker: a system with `similarity`. shown: the image to compare with, as an array, where there
        are no captions.

    Raises:
      UserError: captions that it can't read.
    """
    from t2i_jax.systems import notices, prompting

    side = 8  # of a blank image; it is resized
    blank = np.zeros((each, side, side, 3), np.uint8)
    with notices.quiet():
        if not captions:
            ranker.likeness(blank, shown)
            return
        ranker.similarity(blank, list(captions[:1]))
    prompting.texts(
        ranker.task.text_encoder, ranker.text_tokenizer, list(captions), None, guided=False,
        field="captions",
    )  # fmt: skip


def best(
    ranker: Any, images: np.ndarray, captions: Sequence[str], count: int, shown: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images of each caption that are the most similar to it, best first, and how
    similar they are (captions, count); of the image that is `shown` where there are no captions.

    Args:
      ranker: a system with `similarity`. images: those of one caption stand together.
    """
    from t2i_jax.systems import notices

    with notices.quiet():
        if not captions:
            return most_similar(images, ranker.likeness(images, shown).T, count)
        each = len(images) // len(captions)
        scores = [
            ranker.similarity(images[i * each : (i + 1) * each], [caption])[:, 0]
            for i, caption in enumerate(captions)
        ]
        return most_similar(images, np.stack(scores), count)


def write(folder: pathlib.Path, scores: np.ndarray, compared: Sequence[str], kind: str) -> None:
    """Writes how similar each image is to what it was compared with, a caption or the path of an
    image (`kind`), one image a line, by its file's name.
    """
    lines = [f"file\tsimilarity\t{kind}"]
    for i, row in enumerate(scores):
        told = " ".join(compared[i].split())
        lines += [f"{i:03d}-{j:02d}.png\t{score:.4f}\t{told}" for j, score in enumerate(row)]
    (folder / SCORES).write_text("\n".join(lines) + "\n", encoding="utf-8")
