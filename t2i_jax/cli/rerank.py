"""The best of several images, as a network that embeds images and captions together ranks them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError

SCORES = "scores.tsv"


def check(count: int, best_of: int | None, ranker: pathlib.Path | None, captions: int) -> int:
    """The number of images that are generated for each caption.

    Args:
      count: images that are kept. best_of: among how many; None: all are kept. ranker: the run that
        compares them with their captions; None: none.

    Raises:
      UserError: a number to choose from without a ranker or the other way round, a ranker without
        captions, or a choice among fewer images than are kept.
    """
    if best_of is None and ranker is None:
        return count
    if best_of is None or ranker is None:
        given, missing = ("rerank", "best-of") if best_of is None else ("best-of", "rerank")
        raise UserError(f"--{given} does nothing without --{missing}; give both.")
    if best_of < count:
        raise UserError(f"best_of={best_of} is below count={count}; make it {count} or more.")
    if not captions:
        raise UserError("rerank compares images with captions, and there are none; name some.")
    return best_of


def tried(ranker: Any, captions: Sequence[str], each: int) -> None:
    """Lets the ranker read the captions and compare `each` images with the first, by the programs
    of `best`, before many images are made for it.

    Raises:
      UserError: it compares no images with captions, or can't read these.
    """
    from t2i_jax.systems import notices, prompting

    side = 8  # of a blank image; it is resized
    with notices.quiet():
        ranker.similarity(np.zeros((each, side, side, 3), np.uint8), list(captions[:1]))
    prompting.texts(
        ranker.task.text_encoder, ranker.text_tokenizer, list(captions), None, guided=False,
        field="captions",
    )  # fmt: skip


def best(
    ranker: Any, images: np.ndarray, captions: Sequence[str], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images of each caption that are the most similar to it, best first, and how
    similar they are (captions, count). What there is to say of the captions `tried` has said.

    Args:
      ranker: a system with `similarity`. images: those of one caption stand together.
    """
    from t2i_jax.systems import notices

    each, kept, scores = len(images) // len(captions), [], []
    for i, caption in enumerate(captions):
        own = images[i * each : (i + 1) * each]
        with notices.quiet():
            similar = np.asarray(ranker.similarity(own, [caption]))[:, 0]
        order = np.argsort(-similar, kind="stable")[:count]
        kept.append(own[order])
        scores.append(similar[order])
    return np.concatenate(kept), np.stack(scores)


def write(folder: pathlib.Path, scores: np.ndarray, captions: Sequence[str]) -> None:
    """Writes how similar each image is to its caption, one image a line, by its file's name."""
    lines = ["file\tsimilarity\tcaption"]
    for i, row in enumerate(scores):
        told = " ".join(captions[i].split())
        lines += [f"{i:03d}-{j:02d}.png\t{score:.4f}\t{told}" for j, score in enumerate(row)]
    (folder / SCORES).write_text("\n".join(lines) + "\n", encoding="utf-8")
