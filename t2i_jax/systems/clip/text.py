"""The text transformer of a trained CLIP as the frozen text encoder of another system."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax

from t2i_jax import convert, paths, sharding
from t2i_jax.errors import UserError
from t2i_jax.foreign import safetensors_file, vocabulary_file
from t2i_jax.models.clip import CLIP
from t2i_jax.text import bpe
from t2i_jax.text.caption_ids import CaptionIds
from t2i_jax.text.encoder import FrozenEncoder
from t2i_jax.text.padded import without_ends
from t2i_jax.text.tokenizer import TextTokenizer
from t2i_jax.types import Array, Key, Params

_OURS = "params/clip/"  # how the names of an exported run's parameters begin


@dataclasses.dataclass(frozen=True)
class ClipText(FrozenEncoder):
    """A frozen CLIP as a text encoder: one embedding per token, before the projection.

    Its weights stay in a file and are an argument of every step. The image transformer is read
    too, and left out.

    >>> text = ClipText.from_file("clip/model.safetensors", vocabulary="clip")  # doctest: +SKIP

    Attributes:
      source: file with the weights of a CLIP of PyTorch, or the weights.safetensors of an exported
        run of a `ClipTask`. None: weights are drawn at random, for trying things out.
      network: `CLIP` or `OpenAIClip`.
      vocabulary: folder with its vocabulary, as `CaptionIds.source`; None: one is trained on the
        captions, for random weights alone.
      max_length: tokens of a caption; None: as many as the network has positions for.
      ends: False: the BPE of CLIP puts no start and no end token around captions; True: as the
        vocabulary's folder says.
    """

    source: str | None
    network: Any
    vocabulary: str | None = None
    max_length: int = 0
    ends: bool = True

    trainable: ClassVar[bool] = False
    entry: ClassVar[str] = "text"  # of the batch: what `embed` takes

    def __post_init__(self):
        most = self.network.text_length
        if not self.max_length:
            object.__setattr__(self, "max_length", most)
        if not 1 <= self.max_length <= most:
            raise UserError(
                f"max_length={self.max_length} is not from 1 to {most}, the positions of the "
                "network; leave it out."
            )

    @classmethod
    def from_file(
        cls,
        source: str | os.PathLike,
        vocabulary: str | os.PathLike | None = None,
        **fields: Any,
    ) -> ClipText:
        """The CLIP of a file of PyTorch weights.

        The BPE of CLIP adds no start and no end token to captions of x-clip's network, as when such
        a file is imported.

        Args:
          vocabulary: folder with its vocabulary; None: that of the file, where one lies there.
          fields: configuration of the network that neither the weights nor a config.json beside
            them tell, as of `convert.from_torch`: activation="quick_gelu" for those of OpenAI.

        Raises:
          UserError: a file that holds no CLIP, or whose activation or heads nobody tells.
        """
        network = convert.weights(source, fields).model
        if not hasattr(network, "embed_text"):
            raise UserError(
                f"weights={os.fspath(source)!r} hold a {type(network).__name__}, and no CLIP; give "
                "the weights of a CLIP."
            )
        folder = _vocabulary_beside(source) if vocabulary is None else os.fspath(vocabulary)
        return cls(os.fspath(source), network, folder, ends=not isinstance(network, CLIP))

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.network.text_width

    @property
    def captions(self) -> CaptionIds:
        """The encoder from captions to token ids."""
        own = self.network.captions
        return dataclasses.replace(own, max_length=self.max_length, source=self.vocabulary)

    def init(self, key: Key) -> Params:
        """The text transformer's weights: read from `source` (NumPy arrays, `key` is not used), or
        random ones where there is none.
        """
        if self.source is None:
            return {"text": sharding.unbox(self.network.init(key))["text"]}
        path = pathlib.Path(self.source)
        found = _exported(path) if path.suffix == ".safetensors" else {}
        if found:
            return {"text": self._checked(found)}
        fields = {f.name: getattr(self.network, f.name) for f in dataclasses.fields(self.network)}
        fields = {name: value for name, value in fields.items() if name not in ("dtype", "remat")}
        return {"text": convert.weights(self.source, fields).params["text"]}

    def shapes(self) -> Params:
        """The weights' shapes, boxed with their logical axes."""
        return {"text": jax.eval_shape(self.network.init, jax.random.key(0))["text"]}

    def embed(
        self, params: Params, text_BL: Array, mask_BL: Array, key: Key | None = None
    ) -> Array:
        """Embeddings (B, L, dim) float32 of token ids; rows at padding are zero."""
        tokens_BLE = self.network.text_features(params, text_BL, mask_BL).tokens_BNE
        return jax.numpy.where(mask_BL[..., None], tokens_BLE, 0)

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.network.vocab_size

    @property
    def trains_vocabulary(self) -> bool:
        """Whether weights are random and no vocabulary is given."""
        return self.source is None and self.captions.trains_vocabulary

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Copies the vocabulary into `folder`, unless there is one; for random weights without one
        it is trained on the captions.

        Raises:
          UserError: trained weights without their vocabulary.
        """
        if self.source is not None and self.vocabulary is None and not os.path.isdir(folder):
            raise UserError(
                f"text.vocabulary=None, and text.source={self.source!r} holds trained weights, to "
                "which ids of another vocabulary mean nothing; give the folder of their own "
                "(tokenizer.json, or vocab.json and merges.txt)."
            )
        self.captions.prepare(folder, captions)

    def tokenizer(self, folder: str | os.PathLike | None = None) -> TextTokenizer | None:
        """The vocabulary in `folder`, else `vocabulary`."""
        words = self.captions.tokenizer(folder)
        return words if self.ends else without_ends(words)

    def _checked(self, found):
        wanted = convert.engine.flatten(sharding.unbox(self.shapes())["text"])
        given = convert.engine.flatten(found)
        wrong = [
            "/".join(path)
            for path in wanted.keys() | given.keys()
            if path not in given
            or path not in wanted
            or tuple(given[path].shape) != tuple(wanted[path].shape)
        ]
        if wrong:
            raise UserError(
                f"text.source={self.source!r} does not fit the network ({sorted(wrong)[0]} and "
                f"{len(wrong) - 1} more); give the network of that run."
            )
        return found


def _vocabulary_beside(source):
    """The folder of a file of weights where it holds the vocabulary of a CLIP; else None."""
    folder = paths.given("text.source", source).parent
    whole, pieces = folder / bpe.WHOLE, (folder / bpe.VOCABULARY, folder / bpe.MERGES)
    if whole.is_file():
        is_clip = bpe.is_clip(vocabulary_file.read(whole).decode("utf-8", "replace"))
    else:
        is_clip = all(path.is_file() for path in pieces)
    return str(folder) if is_clip else None


def _exported(path):
    """The text transformer in the weights of an exported run; {} where the file holds none."""
    readers = safetensors_file.readers(path, "text.source")
    start = f"{_OURS}text/"
    return convert.engine.unflatten(
        {
            tuple(name.removeprefix(start).split("/")): read()
            for name, read in readers.items()
            if name.startswith(start)
        }
    )
