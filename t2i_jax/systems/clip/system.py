"""A trained CLIP: images and captions to vectors, and how similar they are."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.compiler import Program
from t2i_jax.eval.evaluation import JUDGES, Evaluation
from t2i_jax.eval.grid import grid
from t2i_jax.files import replacing
from t2i_jax.models.image_text import TextEmbedding
from t2i_jax.nn import contrastive
from t2i_jax.pixels import SIGNED, to_float
from t2i_jax.systems import calls, given, notices, placing, prompting
from t2i_jax.systems.base import Findings, HeldOut, System, of_held_out
from t2i_jax.systems.clip import retrieval
from t2i_jax.text.encoder import are_captions, captions_of

if TYPE_CHECKING:
    from t2i_jax.systems.clip.task import ClipTask

_AT_ONCE = 64  # rows of a batch
_SIDE, _SHOWN = 96, 32  # least height in pixels of an image on a sheet, and most images of it
_MOST_CLASSES = 64  # different captions, up to which they count as names of classes


@dataclasses.dataclass(frozen=True)
class ClipSystem(System):
    """A trained CLIP.

    >>> clip = t2i.load("runs/clip")                                              # doctest: +SKIP
    >>> clip.similarity(["a.png", "b.png"], ["a red circle", "a blue square"])    # doctest: +SKIP

    Attributes:
      task: the task that trained it. weights: {"clip": parameters}.
      text_tokenizer: captions to ids; None: captions are given as ids.
      mesh: the mesh on which it works, see `placing.on_mesh`; None: one device.
      frozen: weights of frozen networks, of which a CLIP has none.
    """

    task: ClipTask
    weights: Mapping[str, Any]
    text_tokenizer: Any = None
    mesh: Any = None

    frozen: Any = dataclasses.field(default_factory=dict, kw_only=True)

    def on_mesh(
        self, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
    ) -> System:
        """The same system on a mesh, see `placing.on_mesh`."""
        return placing.on_mesh(self, shape, devices)

    def offloaded(self) -> System:
        """The same system, whose weights are in the host's memory while it does not embed."""
        return placing.offloaded(self)

    def embed_text(
        self, captions: Any, batch_size: int | None = None, *, field: str = "captions"
    ) -> np.ndarray:
        """(P, D) float32, l2-normalised: captions in the joint space.

        Args:
          captions: a string, a list of them, or token ids (P, L), where padding is 0
            or the network's `text_pad_id`.
          batch_size: rows that are computed at once; None: 64. field: their name in messages.

        Raises:
          UserError: nothing of these.
        """
        ids = self.ids(captions, field)
        return np.asarray(self._in_batches(self._text, ids, batch_size).embed_BD)

    def encode_text(self, captions: Any, batch_size: int | None = None) -> TextEmbedding:
        """The `TextEmbedding` of captions: those of `embed_text`, and the encodings of their
        tokens; NumPy arrays. Arguments as of `embed_text`.
        """
        return self._in_batches(self._text, self.ids(captions), batch_size)

    def embed_images(self, images: Any, batch_size: int | None = None) -> np.ndarray:
        """(P, D) float32, l2-normalised: images in the joint space.

        Args:
          images: one or several, in any form and size, see `given.images`.
        """
        shown = self.pixels(images)
        return self._in_batches(self._image, {"image": shown}, batch_size)

    def similarity(self, images: Any, captions: Any) -> np.ndarray:
        """(images, captions) float32 cosines, from -1 to 1.

        Of a network with `use_all_token_embeds` they are the mean of both directions of comparing
        patches with tokens (Yao et al. 2021).
        """
        shown, ids = self.pixels(images), self.ids(captions)
        if not self.task.contrastive.by_tokens:
            image_ID = self._in_batches(self._image, {"image": shown}, None)
            return image_ID @ self._in_batches(self._text, ids, None).embed_BD.T
        return self._by_tokens(shown, ids)

    def likeness(self, images: Any, others: Any) -> np.ndarray:
        """(images, others) float32 cosines of the embeddings of images, from -1 to 1.

        Args:
          images, others: one or several, in any form and size, see `given.images`.
        """
        shown = self.pixels(images), self.pixels(others, "others")
        one_ID, other_JD = (self._in_batches(self._image, {"image": each}, None) for each in shown)
        return one_ID @ other_JD.T

    def classify(self, images: Any, classes: Sequence[str]) -> list[str]:
        """The name of the class whose caption is the most similar, for each image."""
        named = captions_of(classes, "classes")
        scores_IC = self.similarity(images, named)
        return [named[int(best)] for best in scores_IC.argmax(1)]

    def save_vocabulary(self, folder: str | os.PathLike) -> None:
        """Writes the vocabulary into a folder, from which `model.captions.tokenizer` reads it; does
        nothing where the folder is there, or captions are ids.
        """
        folder = pathlib.Path(folder)
        if self.text_tokenizer is not None and not folder.is_dir():
            with replacing(folder) as temporary:
                self.text_tokenizer.save(temporary)

    def preview(
        self, held_out: HeldOut, evaluation: Evaluation
    ) -> tuple[np.ndarray, Mapping[str, float]]:
        """Held-out images with the captions that are the most similar to each, in red those that
        are not true of it; and their recall as `eval/recall@1/...`.
        """
        sheet, found = self._retrieve(held_out, evaluation, evaluation.preview)
        return sheet, {f"eval/{name}": value for name, value in found.items()}

    def evaluate(self, held_out: HeldOut, evaluation: Evaluation) -> Findings:
        """Zero-shot retrieval among `evaluation.pictures` held-out images and their captions:
        recall at 1 and at 5 in both directions. With a judge every caption that is true of an image
        is right for it, else its own alone.

        Where few captions come again and again, as those do that name classes, also `classified`:
        the share of images for which the most similar of them is right.
        """
        sheet, found = self._retrieve(held_out, evaluation, evaluation.pictures)
        return Findings(of_held_out(found), {"heldout": sheet})

    def _retrieve(self, held_out, evaluation, count):
        """(a sheet, measures) of `count` held-out images and all their captions."""
        samples = held_out(count, ("image", "caption"))
        images, own = samples["image"], list(samples["caption"])
        captions = list(dict.fromkeys(own))
        with notices.quiet():
            scores_IC = self.similarity(images, captions)
        judge = None if evaluation.judge is None else JUDGES[evaluation.judge]()
        right_IC = retrieval.agreement(images, own, captions, judge)
        found = dict(retrieval.measures(scores_IC, right_IC))
        if len(captions) <= min(_MOST_CLASSES, count // 4):
            found["classified"] = found["recall@1/image_to_text"]
        best_I = scores_IC.argmax(1)
        told = [captions[int(best)] for best in best_I]
        right = right_IC[np.arange(len(own)), best_I]
        return grid(images[:_SHOWN], 8, _SIDE, told[:_SHOWN], right[:_SHOWN]), found

    def ids(self, captions: Any, field: str = "captions") -> dict[str, np.ndarray]:
        """{"text", "text_mask"} (P, L): what the network reads of captions; arguments as of
        `embed_text`.
        """
        encoder = self.task.text_encoder
        if self.text_tokenizer is not None and are_captions(captions):
            return prompting.texts(
                encoder, self.text_tokenizer, captions, None, guided=False, field=field
            )
        return encoder.encode(self.text_tokenizer, captions, field)

    def pixels(self, images: Any, field: str = "images") -> np.ndarray:
        """uint8 (P, H, W, C): images as the network sees them, in any form, see `given.images`."""
        size, channels = self.task.model.image_size, self.task.model.channels
        read = given.images(field, images, None, channels)
        return given.fitted(field, read, (size, size), self.crop)

    def _in_batches(self, function, arrays, batch_size):
        calls.check_count("batch_size", batch_size)
        total = len(next(iter(arrays.values())))
        size, made = min(batch_size or _AT_ONCE, total), []
        for start in range(0, total, size):
            rows = np.minimum(np.arange(start, start + size), total - 1)
            with jax.set_mesh(self.mesh):
                found = function(self.weights["clip"], {n: a[rows] for n, a in arrays.items()})
            made.append(jax.tree.map(lambda x, s=start: np.asarray(x)[: total - s], found))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *made)

    @functools.cached_property
    def _text(self):
        model = self.task.model

        def embed(params, arrays):
            return model.embed_text(params, arrays["text"], arrays["text_mask"])

        return Program(embed)

    @functools.cached_property
    def _image(self):
        model = self.task.model
        return Program(
            lambda params, arrays: model.embed_image(params, to_float(arrays["image"], SIGNED))
        )

    @functools.cached_property
    def _tokens(self):
        contrast, model = self.task.contrastive, self.task.model

        def of_text(params, arrays):
            features = model.text_features(params, arrays["text"], arrays["text_mask"])
            latents = contrast.text(params, features)
            return latents.own, latents.extra, latents.mask_BN

        return Program(of_text)

    @functools.cached_property
    def _patches(self):
        contrast, model = self.task.contrastive, self.task.model

        def of_image(params, arrays):
            features = model.image_features(params, to_float(arrays["image"], SIGNED))
            latents = contrast.image(params, features)
            return latents.own, latents.extra

        return Program(of_image)

    def _by_tokens(self, shown, ids):
        text = self._in_batches(self._tokens, ids, None)
        image = self._in_batches(self._patches, {"image": shown}, None)
        rows = []
        for start in range(0, len(shown), 8):  # few at once: a score per patch and token
            own, extra = (jnp.asarray(one[start : start + 8]) for one in image)
            by_text = contrastive.text_by_tokens((text[0], text[2]), own)
            by_image = contrastive.image_by_patches(extra, (text[1], text[2]))
            rows.append(np.asarray((by_text.T + by_image) / 2))
        return np.concatenate(rows)
