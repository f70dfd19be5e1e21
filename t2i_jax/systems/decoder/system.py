"""A trained decoder: image embeddings, images or captions to images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t2i_jax.compiler import Program
from t2i_jax.errors import UserError
from t2i_jax.pixels import SIGNED, to_float
from t2i_jax.systems import calls, given, kept, notices, placing, prompting
from t2i_jax.systems.cascade.system import CascadeSystem
from t2i_jax.systems.clip import joint_space
from t2i_jax.systems.decoder import latents, sampling
from t2i_jax.systems.decoder.options import DecoderOptions
from t2i_jax.text.stored import is_pair
from t2i_jax.types import Array
from t2i_jax.words import counted

if TYPE_CHECKING:
    from t2i_jax.systems.clip.system import ClipSystem
    from t2i_jax.systems.decoder.task import DecoderTask

UNREAD = (
    "prompts have no effect beside images or their embeddings, as the decoder was trained without "
    "captions"
)


@dataclasses.dataclass(frozen=True)
class DecoderSystem(CascadeSystem):
    """A trained decoder.

    >>> decoder = t2i.load("runs/decoder")                                    # doctest: +SKIP
    >>> images = decoder.generate(image_embeds=embeds, seed=1)                # doctest: +SKIP
    >>> again = decoder.generate(images="photo.png", images_per_prompt=4)     # doctest: +SKIP

    Attributes:
      task: the task that trained it.
      weights: {"stage_1": {"unet"}, ...}.
      updates: of each stage, how often it was trained.
      frozen: {"clip", "tokenizer", "text"}: weights of the parts and of a frozen text encoder.
      text_tokenizer: captions to ids; None where captions are ids or embeddings, or there are none.
      mesh: on which it samples, see `placing.on_mesh`; None: one device.
      clip: the part, which embeds captions; None: embeddings are stored.
      reader: the CLIP that made the stored encodings of captions, whose weights are in `frozen`, so
        that prompts may be captions; None: they are given as encodings, or not stored.
    """

    task: DecoderTask
    clip: ClipSystem | None = None
    reader: ClipSystem | None = None

    def offloaded(self) -> DecoderSystem:
        """The same system, see `placing.offloaded`, and its CLIP likewise."""
        of = {"clip": self.clip, "reader": self.reader}
        clips = {name: None if one is None else one.offloaded() for name, one in of.items()}
        return dataclasses.replace(placing.offloaded(self), **clips)

    def reading(self, clip: ClipSystem) -> DecoderSystem:
        """The same system, whose stored encodings of captions this CLIP made."""
        frozen = {**(self.frozen or {}), "clip": clip.weights}
        return dataclasses.replace(self, reader=clip, frozen=frozen)

    def generate(
        self,
        prompts: Any = None,
        options: DecoderOptions | None = None,
        *,
        image_embeds: Any = None,
        images: Any = None,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        negative_prompts: Any = None,
        start_images: Any = None,
        init_images: Any = None,
        mask: Any = None,
        return_stages: bool = False,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C), of the last trained stage.

        The images of one prompt, or of one embedding, stand together. The image embedding is the
        first that is given of `image_embeds`, the CLIP embedding of `images`, and the CLIP
        embedding of the caption, which lies beside those of images: a prior gives better ones.

        Args:
          prompts: a caption, or a list of them; the pair (encodings (P, L, E), mask (P, L)) of a
            decoder that was trained on stored ones; None: no captions, which a decoder that was
            trained on some takes as dropped ones.
          options: sampling options; None: the defaults of `DecoderOptions`. changes: single options
            by name, guidance=2.0.
          image_embeds: (P, D), or (D,) for one; of CLIP, l2-normalised.
          images: images in any form and size, see `given.images`, of which variations are made.
          seed: the same seed gives the same images, whatever the batch size. A list has
            one for each prompt, or for each image.
          negative_prompts: what the images should not show, one per prompt or one string for all;
            guidance then starts from there, and from no image embedding.
          start_images: for a start after the first stage (`options.start_at`).
          init_images: images to change by `options.strength` or `options.eta` or, with `mask`, to
            inpaint; None beside `options.eta`: `images`. A mask is
            white or True where to keep, see `given.masks`.
          return_stages: a list with the images of every stage that ran. return_pil: lists of PIL
            images.
          batch_size: images made at a time; None: all. progress: shows a bar for each stage.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        inputs = {
            "start_images": start_images, "init_images": init_images, "mask": mask,
            "images": images,
        }  # fmt: skip
        options = calls.with_changes(DecoderOptions, options, changes, inputs)
        scales = options.per_stage("guidance", len(self.task.stages))
        self._check_guidance(scales, negative_prompts is not None)
        if images is not None and image_embeds is None:
            images, init_images = self.begun_with(options, images, init_images)
            images = self._pixels(images)
        shown = {"image_embeds": image_embeds, "images": images}
        running = self._of_running(options, scales)
        found, texts = self._told(prompts, negative_prompts, **shown, scales=running)
        others: dict[str, Any] = {
            "seed": seed, "images_per_prompt": images_per_prompt, "batch_size": batch_size,
            "start_images": given.read_once("start_images", start_images, self.task.channels),
            "init_images": given.read_once("init_images", init_images, self.task.channels),
            "mask": given.read_once("mask", mask, None), "cond_images": None,
        }  # fmt: skip
        with notices.quiet():  # refused before CLIP embeds anything, told afterwards
            self._prepared(options, found or texts, scales, progress=False, **others)
        prompt = self._prompt(found, texts, prompts, **shown)
        return self._generated(
            options,
            prompt,
            scales,
            return_stages=return_stages,
            return_pil=return_pil,
            progress=progress,
            **others,
        )

    def begun_with(self, options: DecoderOptions, images: Any, init_images: Any) -> Any:
        """(images to vary, their init images): with `options.eta` the images themselves, if there
        are no others; one of them is for all.
        """
        if options.eta is None or init_images is not None:
            return images, init_images
        images = given.read_once("images", images, self.task.channels)
        alone = isinstance(images, list) and len(images) == 1
        return images, images[0] if alone else images

    def check(
        self,
        prompts: Any,
        options: DecoderOptions,
        *,
        rows: int,
        negative_prompts: Any = None,
        **others: Any,
    ) -> None:
        """Refuses what `generate` refuses, while the image embeddings are not made yet; nothing
        compiles.

        Args:
          rows: how many embeddings there will be. The others: as of `generate`.

        Raises:
          UserError: an argument that does not fit.
        """
        scales = options.per_stage("guidance", len(self.task.stages))
        self._check_guidance(scales, negative_prompts is not None)
        embeds = np.eye(1, self.task.embed_width, dtype=np.float32).repeat(rows, axis=0)
        running = self._of_running(options, scales)
        found, _ = self._told(prompts, negative_prompts, embeds, None, running)
        nothing = {"start_images": None, "cond_images": None, "progress": False}
        self._prepared(options, found, scales, **others, **nothing)

    def conditions(self, samples: Mapping[str, Any], rows: Sequence[int]) -> Mapping[str, Any]:
        """The images themselves, or their stored embeddings."""
        names = {"image": "images", "image_embeds": "image_embeds"}
        rows = list(rows)
        return {
            names[name]: np.asarray(samples[name])[rows]
            for name in self.task.samples
            if name in names
        }

    def embed_images(self, images: Any) -> np.ndarray:
        """(P, D) float32: CLIP embeddings of images in any form and size.

        Raises:
          UserError: a decoder without CLIP.
        """
        clip, pixels = self._clip("images").task.network, self._pixels(images)
        return np.asarray(_of_images(sampling.clip_weights(self.frozen), pixels, clip=clip))

    def _pixels(self, images):
        """Images (P, H, W, C) uint8 of the size that CLIP sees, or of its aspect."""
        if not self.task.by_image:  # refused by `_told`
            return images
        side = self._clip("images").task.network.image_size
        read = given.images("images", images, None, self.task.channels)
        return given.cut("images", read, (side, side), self.crop)

    def _prompt(self, found, texts, prompts, image_embeds, images):
        """The arrays that the images are conditioned on, a row per prompt; `found`, `texts`: of
        `_told`.
        """
        if images is not None:
            found = {"image_embeds": self.embed_images(images)}
        elif found and image_embeds is None:
            found = {"image_embeds": self._clip("prompts").embed_text(prompts)}
        return found | (self._encodings(texts) if texts else {})

    def _told(self, prompts, negative_prompts, image_embeds, images, scales):
        """({"image_embeds"}, the arrays of captions), as far as the decoder reads them; `scales`
        are those of the stages that run.

        Nothing compiles: zeros stand for embeddings that CLIP has yet to make.
        """
        task, guided = self.task, any(scale != 1 for scale in scales)
        if not (task.by_image or task.by_text):
            for name, value in (
                ("prompts", prompts), ("image_embeds", image_embeds), ("images", images),
            ):  # fmt: skip
                if value is not None:
                    raise UserError(
                        f"{name} are given to an unconditional decoder; leave them out."
                    )
            return {}, {}
        if image_embeds is not None and images is not None:
            raise UserError("image_embeds and images are both given; give one of them.")
        found, texts = {}, {}
        is_shown = image_embeds is not None or images is not None
        if is_shown and not task.by_image:
            name = "images" if image_embeds is None else "image_embeds"
            raise UserError(
                f"{name} are given to a decoder that was trained on captions alone; leave them out."
            )
        if prompts is not None and is_shown and not task.by_text:
            notices.tell(UNREAD)
        if prompts is not None and self.task.text_encoder is None:
            raise UserError(
                "prompts are given to a decoder without a CLIP to read them; give image_embeds."
            )
        if negative_prompts is not None and (prompts is None or not task.by_text):
            raise UserError(
                "negative_prompts take the place of prompts that the decoder was trained on; leave "
                "them out."
            )
        if prompts is not None:
            reads = self._encoder(prompts)
            texts = prompting.texts(*reads, prompts, negative_prompts, guided=guided)
            prompting.tell_unread(texts, self._text_lengths)
        if task.by_image:
            found["image_embeds"] = self._embeds(image_embeds, images, prompts, texts)
        rows = len(found["image_embeds"]) if found else len(texts.get("text_mask", ()))
        if texts and len(texts["text_mask"]) != rows:
            raise UserError(
                f"prompts have {counted(len(texts['text_mask']), 'caption')} for "
                f"{counted(rows, 'image embedding')}; give one for each."
            )
        if not task.by_text:
            return found, {}
        if not texts and not rows:
            raise UserError(
                "prompts=None: this decoder was trained on captions; give a list of them."
            )
        return found, texts or _blank(task.text_encoder, rows)

    def _embeds(self, image_embeds, images, prompts, texts):
        """The image embeddings that are given, or zeros for those that images or captions make."""
        if images is not None:
            return np.zeros((len(images), self.task.embed_width), np.float32)
        if image_embeds is None:
            if prompts is None:
                raise UserError(
                    "image_embeds=None: this decoder was trained on image embeddings; give some, "
                    "or images, or captions."
                )
            self._clip("prompts")
            return np.zeros((len(texts["text_mask"]), self.task.embed_width), np.float32)
        return self.checked_embeds(image_embeds)

    def checked_embeds(self, image_embeds: Any) -> np.ndarray:
        """(P, D) float32 of image embeddings that are given, (D,) for one.

        Raises:
          UserError: no numbers, of another shape, or without a direction. A line on stderr tells of
            lengths that CLIP's embeddings do not have.
        """
        return joint_space.vectors("image_embeds", image_embeds, self.task.embed_width)

    def _encoder(self, prompts):
        """(encoder, tokenizer) of prompts: of captions for which there are stored encodings, those
        of the CLIP that made them.
        """
        if self.reader is None or is_pair(prompts):
            return self.task.text_encoder, self.text_tokenizer
        return self.reader.task.text_encoder, self.reader.text_tokenizer

    @property
    def _text_lengths(self):
        """See `SystemTask.text_lengths`; with what was stored, where CLIP makes it."""
        stored = {} if self.reader is None else {"stored text": self.task.text.max_length}
        return {**self.task.text_lengths, **stored}

    def _as_stored(self, arrays):
        """The encodings of the captions that have these ids, as they were stored for training."""
        assert self.reader is not None
        own = (sampling.clip_weights(self.frozen), arrays["text"], arrays["text_mask"])
        encodings = np.asarray(_of_texts(*own, clip=self.reader.task.network)[1])
        text = self.task.text
        pair = (one[:, : text.max_length] for one in (encodings, arrays["text_mask"]))
        return text.encode(None, tuple(pair), "prompts")

    def _encodings(self, texts):
        """{"encodings", "encodings_mask"}, and those of negative captions with that prefix."""
        if self.task.text is not None and self.task.text.trainable:
            return texts  # every stage reads them by an encoder of its own
        found = {}
        for prefix, arrays in (
            ("", prompting.without_negative(texts)),
            ("negative_", prompting.negative_of(texts)),
        ):
            if not arrays:
                continue
            if self.reader is not None and "text" in arrays:
                arrays = self._as_stored(arrays)
            if self.task.text is None:
                self._clip("prompts")
                own = (sampling.clip_weights(self.frozen), arrays["text"], arrays["text_mask"])
                encodings = np.asarray(_of_texts(*own, clip=self.task.clip)[1])
            else:
                embed, own = self.task.text.embed, (self.frozen or {}).get("text", {})
                encodings = embed(own, arrays[self.task.text.entry], arrays["text_mask"])
            found[f"{prefix}encodings"] = np.asarray(encodings)
            found[f"{prefix}encodings_mask"] = np.asarray(arrays["text_mask"])
        return found

    def _clip(self, name):
        if self.task.clip is None:
            raise UserError(
                f"{name} are given to a decoder that was trained on stored embeddings, without a "
                "CLIP; give image_embeds."
            )
        if self.clip is None:
            raise UserError(
                f"{name} are read by the part clip of this decoder, which is missing; restore its "
                "folder and parts.json from a copy, or give image_embeds."
            )
        return self.clip

    def _tell_kept(self, sizes, keep_PHW):
        """Says how many latents a mask keeps.

        Raises:
          UserError: of an image it keeps none.
        """
        for number, size in sizes.items():
            if not self.task.stages[number - 1].latent:
                continue
            grid = self.task.made_shape(number, size)[:2]
            known_PRC = np.asarray(latents.kept(keep_PHW, grid))
            is_whole = keep_PHW.shape[1:] == size
            kept.tell(
                known_PRC, keep_PHW, "latent", f"stage {number}",
                f"mask keeps no latent of stage {number}, which",
                size=(self.task.tokenizer.patch_size,) * 2,
                beside="inpainted, and laid over it" if is_whole else "inpainted",
            )  # fmt: skip

    def _check_guidance(self, scales, negative):
        """Refuses guidance of a decoder that never lost its conditions in training, and tells of
        one of them that it never lost.

        `negative`: whether guidance starts from negative prompts in place of no captions.
        """
        task, guided = self.task, [scale != 1 for scale in scales]
        used, never = [], []
        for name, what, drop in (
            ("cond_on_image_embeds", "image embeddings", "image_cond_drop_prob"),
            ("cond_on_text_encodings", "captions", "text_cond_drop_prob"),
        ):
            by = [getattr(stage.unet, name) for stage in task.stages]
            used += [getattr(task, drop)] if any(by) else []
            starts = any(one and scaled for one, scaled in zip(by, guided, strict=True))
            if starts and not getattr(task, drop) and not (negative and what == "captions"):
                never.append((what, drop))
        if used and not any(used) and any(guided):
            raise UserError(
                f"guidance={scales[0] if len(scales) == 1 else tuple(scales)}, and the decoder was "
                "trained without dropping conditions; give guidance=1."
            )
        for what, drop in never:
            prompting.tell_never_dropped(what, drop)

    def _program(self, params: Any, prompt: Mapping[str, Any], keys_B: Any, **settings: Any) -> Any:
        """Images of one stage."""
        frozen = {name: own for name, own in (self.frozen or {}).items() if name == "tokenizer"}
        return sampling.generate(
            params, frozen, prompt, keys_B, task=self._sampled_task, **settings
        )


@functools.partial(Program, static_argnames="clip")
def _of_images(params, image_BHWC: Array, *, clip) -> Array:
    return clip.embed_image(params, to_float(image_BHWC, SIGNED))


@functools.partial(Program, static_argnames="clip")
def _of_texts(params, text_BL: Array, mask_BL: Array, *, clip) -> Any:
    return clip.embed_text(params, text_BL, mask_BL)


def _blank(encoder, rows):
    """Captions without a token."""
    return {name: np.zeros(one.shape, one.dtype) for name, one in encoder.spec(rows).items()}
