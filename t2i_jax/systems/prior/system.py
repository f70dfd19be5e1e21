"""A trained prior: captions to CLIP's embeddings of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.evaluation import Evaluation
from t2i_jax.eval.grid import grid
from t2i_jax.eval.ranking import most_similar
from t2i_jax.foreign import arrays as foreign
from t2i_jax.models.image_text import TextEmbedding
from t2i_jax.systems import batching, calls, notices, placing, prompting
from t2i_jax.systems.base import Findings, HeldOut, System, of_held_out
from t2i_jax.systems.clip import joint_space
from t2i_jax.systems.prior import sampling
from t2i_jax.systems.prior.options import PriorOptions
from t2i_jax.text.encoder import are_captions

if TYPE_CHECKING:
    from t2i_jax.systems.prior.task import PriorTask

_AT_ONCE, _SHOWN, _SIDE = 64, 32, 96  # embeddings at a time; images of a sheet, their least height


@dataclasses.dataclass(frozen=True)
class PriorSystem(System):
    """A trained prior.

    >>> prior = t2i.load("runs/prior")                                           # doctest: +SKIP
    >>> prior.embed(["a red circle above a blue square"]).shape                  # doctest: +SKIP
    (1, 512)

    Attributes:
      task: the task that trained it. weights: {"prior": parameters}.
      frozen: {"clip": CLIP's weights}; {} without it.
      clip: the trained CLIP; None: captions are given as embeddings.
      mesh: the mesh on which it samples, see `placing.on_mesh`; None: one device.
    """

    task: PriorTask
    weights: Mapping[str, Any]
    frozen: Mapping[str, Any]
    clip: Any = None
    mesh: Any = None

    def on_mesh(
        self, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
    ) -> System:
        """The same system, sampling on a mesh, see `placing.on_mesh`."""
        return placing.on_mesh(self, shape, devices)

    def offloaded(self) -> System:
        """The same system, whose weights are in the host's memory while it does not sample, and so
        are those of its CLIP.
        """
        clip = None if self.clip is None else self.clip.offloaded()
        return dataclasses.replace(placing.offloaded(self), clip=clip)

    def embed(
        self,
        captions: Any,
        options: PriorOptions | None = None,
        *,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> np.ndarray:
        """Image embeddings, float32 (captions * images_per_prompt, D); those of one caption stand
        together.

        Args:
          captions: a caption, a list of them, token ids (P, L), or their `TextEmbedding`.
          options: sampling options; None: the defaults of `PriorOptions`. changes: single options
            by name, guidance=1.5.
          seed: the same seed gives the same embeddings, whatever the batch size. A list has
            one for each prompt, or for each image.
          images_per_prompt: embeddings of each caption; of each of them `options.num_samples` are
            sampled, and the one is kept that is the most similar to the caption.
          batch_size: samples made at a time; None: 64. progress: shows a bar over these batches.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        chosen = calls.with_changes(PriorOptions, options, changes)
        if chosen.guidance != 1 and chosen.compat is not None and not self.task.image_drop_prob:
            notices.tell(
                f"guidance with compat={chosen.compat!r} starts from what the prior makes without "
                "the noised embedding, and it was trained without dropping any (image_drop_prob=0);"
                " guidance=1 is what it has learnt"
            )
        calls.check_amounts(images_per_prompt, batch_size)
        prompt = self.prompt(captions)
        images = len(next(iter(prompt.values()))) * images_per_prompt
        batching.check_total(images, "images_per_prompt", images_per_prompt)
        self.check(chosen, images)
        each, total = images_per_prompt * chosen.num_samples, images * chosen.num_samples
        made: list[Any] = []
        settings, params = self.task.sampling_of(chosen), jax.device_put(self.weights["prior"])
        for rows in batching.batches(
            prompt, total, each, seed, batch_size or min(total, _AT_ONCE),
            candidates=chosen.num_samples, progress=progress,
        ):  # fmt: skip
            with jax.set_mesh(self.mesh):
                found = sampling.generate(
                    params, self.frozen, rows.arrays, rows.keys_B, task=self.task,
                    sampling=settings, guidance=jnp.float32(chosen.guidance),
                )  # fmt: skip
            made.append([np.asarray(array)[: rows.count] for array in found])
        embeds, cosines = (np.concatenate(parts) for parts in zip(*made, strict=True))
        return most_similar(embeds, cosines.reshape(-1, chosen.num_samples), 1)[0]

    def check(self, options: PriorOptions, images: int) -> None:
        """Refuses options that do not fit the prior, and more samples than are kept in memory.

        Args:
          images: embeddings that are wanted, of each of which it makes `options.num_samples`.

        Raises:
          UserError: the first of these.
        """
        self.task.check_options(options)
        total = images * options.num_samples
        if images <= batching.MOST_IMAGES < total:  # more images are refused as such
            raise UserError(
                f"num_samples={options.num_samples} makes {total} samples for {images} embeddings, "
                f"and one call makes {batching.MOST_IMAGES} at most; give less, or ask for fewer "
                "at a time."
            )

    def prompt(self, captions: Any, field: str = "captions") -> dict[str, np.ndarray]:
        """The arrays of captions that `sampling.generate` takes.

        Args:
          captions: as of `embed`. field: their name in messages.

        Raises:
          UserError: captions where there is no CLIP, or embeddings of another shape.
        """
        found = self._read(captions, field)
        prompting.tell_unread(found, self.task.text_lengths, field)
        return found

    def _read(self, captions, field):
        if isinstance(captions, TextEmbedding):
            return self._stored(captions, field)
        if self.clip is None:
            raise UserError(
                f"{field} are no embeddings, and this prior was trained without its CLIP; give a "
                "TextEmbedding of the CLIP that made the data's."
            )
        encoder, tokenizer = self.clip.task.text_encoder, self.clip.text_tokenizer
        if tokenizer is None or not are_captions(captions):
            return dict(encoder.encode(tokenizer, captions, field))
        return prompting.texts(encoder, tokenizer, captions, None, guided=False, field=field)

    def _stored(self, text, field):
        embeds = joint_space.vectors(f"{field}.embed_BD", text.embed_BD, self.task.network.width)
        shape, arrays = embeds.shape, {"caption_embeds": embeds}
        if not self.task.use_encodings:
            return arrays
        if text.encodings_BLE is None:
            raise UserError(
                f"{field} have no encodings of tokens, and this prior was trained with them; give "
                "encodings_BLE and mask_BL too."
            )
        of_tokens = self.task.network.text_dim or self.task.network.dim
        wanted = f"({shape[0]}, tokens, {of_tokens})"
        encodings = joint_space.numbers(f"{field}.encodings_BLE", text.encodings_BLE, wanted)
        if encodings.ndim != 3 or encodings.shape[::2] != (shape[0], of_tokens):
            raise UserError(f"{field} have encodings of shape {encodings.shape}; give {wanted}.")
        mask = _mask(f"{field}.mask_BL", text.mask_BL, encodings)
        return {**arrays, "text_embeds": encodings, "text_mask": mask}

    def preview(
        self, held_out: HeldOut, evaluation: Evaluation
    ) -> tuple[np.ndarray, Mapping[str, float]]:
        """The held-out image whose embedding is the nearest to the one that is made of each
        held-out caption, red where it is another one than its own; and the cosines of `evaluate`.
        """
        sheet, found = self._compare(held_out, evaluation, evaluation.preview)
        return sheet, {f"eval/{name}": value for name, value in found.items()}

    def evaluate(self, held_out: HeldOut, evaluation: Evaluation) -> Findings:
        """The similarity of the embeddings made of `evaluation.pictures` held-out captions, as
        cosines.

        `cosine_heldout`: to the embedding of the caption's own image; `cosine_heldout/baseline`: of
        the caption's own embedding to the image's, which a prior has to surpass;
        `cosine_heldout/unrelated`: to that of another caption's image; `cosine_heldout/nearest`:
        the share of captions to which their own image is the nearest. Without CLIP nothing is
        measured.
        """
        if self.clip is None:
            return Findings({})
        sheet, found = self._compare(held_out, evaluation, evaluation.pictures)
        return Findings(of_held_out(found), {"heldout": sheet})

    def _compare(self, held_out, evaluation, count):
        samples = held_out(count, ("image", "caption"))
        captions: Sequence[str] = list(samples["caption"])
        if self.clip is None:
            return grid(samples["image"][:_SHOWN], 8, _SIDE, captions[:_SHOWN]), {}
        with notices.quiet():
            made = self.embed(captions, evaluation.options, seed=0)
            text, image = self.clip.embed_text(captions), self.clip.embed_images(samples["image"])
        made = made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
        scores = made @ image.T
        nearest, shift = scores.argmax(1), 1 if len(captions) > 1 else 0
        named = [captions[int(one)] for one in nearest]
        right = np.array([own == other for own, other in zip(captions, named, strict=True)])
        found = {
            "cosine": np.diagonal(scores).mean(),
            "cosine/baseline": (text * image).sum(1).mean(),
            "cosine/unrelated": (np.roll(made, shift, axis=0) * image).sum(1).mean(),
            "cosine/nearest": right.mean(),
        }
        sheet = grid(
            samples["image"][nearest[:_SHOWN]], 8, _SIDE, captions[:_SHOWN], right[:_SHOWN]
        )
        return sheet, {name: float(value) for name, value in found.items()}


def _mask(named, given, encodings_BLE):
    """The mask of encodings, bool (B, L); None: where they are not zeros."""
    shape = encodings_BLE.shape[:2]
    if given is None:
        return (encodings_BLE != 0).any(-1)
    try:
        found = foreign.mask(given)
    except foreign.NoArray as error:
        raise UserError(f"{named} {error}; give bool {shape}, True at tokens.") from error
    if found.shape != shape:
        raise UserError(f"{named} is bool {found.shape}; give bool {shape}, True at tokens.")
    return found
