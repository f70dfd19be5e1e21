"""Class labels as texts: one learned embedding per class."""

from __future__ import annotations

import collections
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
from t2i_jax.foreign.arrays import some
from t2i_jax.nn import limits
from t2i_jax.nn.conv import boxed
from t2i_jax.sharding import constrain
from t2i_jax.text.encoder import CaptionEncoder, encode_captions
from t2i_jax.types import Array, Key, Params
from t2i_jax.values import shown

_LISTED = 5  # most captions without a class that a message lists


@dataclasses.dataclass(frozen=True)
class ClassLabels(CaptionEncoder):
    """A text encoder of class labels, with one learned embedding per class: for data such as
    ImageNet's.

        ClassLabels(("tench, Tinca tinca", "goldfish, Carassius auratus"), dim=512)

    A caption stands for the class that it names: it is one of the class's names, or all of them,
    or it contains names of that class alone, as whole words in small or capital letters. Of a name
    that lies within a longer one ("tiger" in "tiger shark") the longer counts. An empty caption is
    no class.

    Attributes:
      names: of each class; several names of one are separated by commas. A name that several
        classes have tells none of them.
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
        self._check_told_apart()

    @functools.cached_property
    def named(self) -> Mapping[tuple[str, ...], Sequence[int]]:
        """The numbers of the classes by the words of each of their names."""
        found: dict[tuple[str, ...], list[int]] = {}
        for number, names in enumerate(self.names):
            for words in dict.fromkeys(map(_words, str(names).split(","))):
                if not words:
                    raise UserError(f"names[{number}]={names!r} has no word; give it a name.")
                found.setdefault(words, []).append(number)
        return found

    @functools.cached_property
    def whole(self) -> Mapping[tuple[str, ...], int]:
        """The number of the class by the words of a caption that is one of its names, or all of
        them, and no other class's.
        """
        found = {words: numbers[0] for words, numbers in self.named.items() if len(numbers) == 1}
        all_names = [_words(str(names)) for names in self.names]
        often = collections.Counter(all_names)
        alone = {words: number for number, words in enumerate(all_names) if often[words] == 1}
        return alone | found

    def _check_told_apart(self):
        unnamed = sorted(set(range(len(self.names))) - set(self.whole.values()))
        if unnamed:
            listed = [f"names[{number}]={self.names[number]!r}" for number in unnamed]
            raise UserError(
                f"{some(listed, 20)} have no name that is not another class's too; call them apart."
            )

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
        """Does nothing: the names are in the recipe."""

    def check_captions(self, captions: Iterable[str]) -> None:
        """Looks whether all captions are classes.

        Raises:
          UserError: some are none; it lists the first few.
        """
        numbers, wrong = self.tokenizer(), {}
        for caption in captions:
            if said := numbers.refused(caption):
                wrong[said] = None  # once, however many images have it
            if len(wrong) == _LISTED:
                break
        if wrong:
            raise UserError(f"{'; '.join(wrong)}; {numbers.remedy}")

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
        self._longest = max(map(len, labels.named))
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
        """Does nothing: the names are in the recipe."""

    def refused(self, text: str) -> str | None:
        """The reason why a caption stands for no class, as the start of a sentence; None: it stands
        for one, or is empty.
        """
        found, names = self._found(text), self._labels.names
        if len(found) == 1 or not text.strip():
            return None
        if not found:
            return f"caption {shown(text)} names none of the {len(names)} classes"
        return f"caption {shown(text)} names {names[found[0]]!r} and {names[found[1]]!r}"

    @property
    def remedy(self) -> str:
        """The end of the sentence that `refused` begins: the remedy."""
        names = self._labels.names
        few = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        return f"name one class ({few}), or train with a text encoder for captions."

    def _number(self, text):
        if said := self.refused(text):
            raise UserError(f"{said}; {self.remedy}")
        return next(iter(self._found(text)), None)

    def _found(self, text):
        """The classes that a caption may stand for, ascending: one, where it tells which."""
        words = _words(text)
        if (number := self._labels.whole.get(words)) is not None:
            return [number]
        named = list(self._named(words))
        own = {numbers[0] for numbers in named if len(numbers) == 1}
        return sorted(own or set(itertools.chain.from_iterable(named)))

    def _named(self, words):
        """The numbers of the classes that have a name, for each name in a caption from left to
        right; at a word the longest name.
        """
        start = 0
        while start < len(words):
            for end in range(min(len(words), start + self._longest), start, -1):
                if numbers := self._labels.named.get(words[start:end]):
                    yield numbers
                    start = end
                    break
            else:
                start += 1


def _words(text):
    return tuple(re.findall(r"\w+", text.casefold()))
