"""Class labels as texts: one learned embedding per class."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.nn import limits
from t2i_jax.nn.conv import boxed
from t2i_jax.sharding import constrain
from t2i_jax.text.encoder import CaptionEncoder, encode_captions
from t2i_jax.types import Array, Key, Params
from t2i_jax.values import shown

_CAPTIONS_LOOKED_AT = 1_000


@dataclasses.dataclass(frozen=True)
class ClassLabels(CaptionEncoder):
    """One learned embedding per class, in place of a text: for data such as ImageNet's.

        ClassLabels(("tench, Tinca tinca", "goldfish, Carassius auratus"), dim=512)

    A caption stands for the class that it names: it is one of the class's names, or it contains
    names of that class alone, as whole words in small or capital letters. Of a name that lies
    within a longer one ("tiger" in "tiger shark") the longer counts. An empty caption is no class.

    Attributes:
      names: of each class; several names of one are separated by commas.
      dim: width of the embeddings, which start with a standard deviation of 1.
    """

    names: tuple[str, ...]
    dim: int

    trainable: ClassVar[bool] = True
    entry: ClassVar[str] = "text"  # of the batch: what `embed` takes
    max_length: ClassVar[int] = 1

    def __post_init__(self):
        limits.check(self)
        if self.dim < 1:
            raise UserError(f"dim={self.dim} is not positive; give 1 or more.")
        if isinstance(self.names, str) or not self.names:
            raise UserError(f"names={self.names!r} holds no class; give a tuple of their names.")
        object.__setattr__(self, "names", tuple(self.names))
        _ = self.classes  # refuses names

    @functools.cached_property
    def classes(self) -> Mapping[tuple[str, ...], int]:
        """The number of the class by the words of each of its names."""
        found: dict[tuple[str, ...], int] = {}
        for number, names in enumerate(self.names):
            for name in str(names).split(","):
                words = _words(name)
                if not words:
                    raise UserError(f"names[{number}]={names!r} has no word; give it a name.")
                if found.setdefault(words, number) != number:
                    raise UserError(
                        f"names[{number}]={names!r} has a name of names[{found[words]}]="
                        f"{self.names[found[words]]!r}; call them apart."
                    )
        return found

    def init(self, key: Key) -> Params:
        """Fresh embeddings, boxed with their logical axes."""
        table = boxed(nn.initializers.normal(1.0), "vocab", "embed")
        return {"embedding": table(key, (len(self.names), self.dim), jnp.float32)}

    def embed(
        self, params: Params, text_BL: Array, mask_BL: Array, key: Key | None = None
    ) -> Array:
        """Embeddings (B, 1, dim) float32 of class numbers (B, 1)."""
        return constrain(params["embedding"], None, None)[text_BL].astype(jnp.float32)

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Writes nothing, and looks whether the first 1,000 captions are classes.

        Raises:
          UserError: one of them is none.
        """
        self.tokenizer()(list(itertools.islice(captions(), _CAPTIONS_LOOKED_AT)), 1)

    def tokenizer(self, folder: str | os.PathLike | None = None) -> ClassNumbers:
        """Captions to class numbers; `folder` is not used."""
        return ClassNumbers(self)

    def encode(self, tokenizer: Any, prompts: Any, field: str) -> dict[str, np.ndarray]:
        """Class numbers of captions and their mask."""
        return encode_captions(self.tokenizer(), prompts, self.max_length, field)


class ClassNumbers:
    """The number of the class that a caption names: the tokenizer of `ClassLabels`."""

    def __init__(self, labels: ClassLabels):
        self._labels = labels
        self._longest = max(map(len, labels.classes))
        self.vocab_size = len(labels.names)

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (B, 1) int32 and mask bool, False at empty captions.

        Raises:
          UserError: a caption that names no class, or several.
        """
        numbers = [self._number(text) for text in texts]
        mask_BL = np.array([[number is not None] for number in numbers], bool).reshape(-1, 1)
        return np.array([[number or 0] for number in numbers], np.int32).reshape(-1, 1), mask_BL

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """1 for each caption: none is ever cut."""
        return np.ones((len(texts),), np.int32)

    def save(self, folder: str | os.PathLike) -> None:
        """Nothing: the names are in the recipe."""

    def _number(self, text):
        words, classes = _words(text), self._labels.classes
        if not text.strip():
            return None
        if words in classes:
            return classes[words]
        found = sorted(set(self._named(words)))
        if len(found) == 1:
            return found[0]
        names = self._labels.names
        if not found:
            few = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f"caption {shown(text)} names none of the {len(names)} classes; name one of them "
                f"({few}), or train with a text encoder for captions."
            )
        raise UserError(
            f"caption {shown(text)} names {names[found[0]]!r} and {names[found[1]]!r}; name one "
            "class."
        )

    def _named(self, words):
        """The classes that a caption names, from left to right; at a word the longest name."""
        start = 0
        while start < len(words):
            for end in range(min(len(words), start + self._longest), start, -1):
                if (number := self._labels.classes.get(words[start:end])) is not None:
                    yield number
                    start = end
                    break
            else:
                start += 1


def _words(text):
    return tuple(re.findall(r"\w+", text.casefold()))
