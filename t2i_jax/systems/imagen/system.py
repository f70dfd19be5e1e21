"""A trained cascade: captions, or nothing at all, to images.

Images inpainted, changed and enlarged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.systems import calls, given, notices, prompting
from t2i_jax.systems.cascade.system import CascadeSystem
from t2i_jax.systems.imagen import sampling
from t2i_jax.systems.imagen.options import ImagenOptions
from t2i_jax.types import Array

if TYPE_CHECKING:
    from t2i_jax.systems.imagen.task import ImagenTask

_BLANK = 16  # side in pixels of an image that stands for any


@dataclasses.dataclass(frozen=True)
class ImagenSystem(CascadeSystem):
    """A trained cascade.

    Attributes:
      task: the task that trained it.
      weights: {"stage_1": {"unet", "text"}, ...}.
      updates: of each stage, how often it was trained.
      frozen: {"text": weights of a frozen encoder}.
      text_tokenizer: captions to ids; None where prompts are embeddings or there are none.
      mesh: on which it samples, see `placing.on_mesh`; None: one device.
    """

    task: ImagenTask

    def generate(
        self,
        prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        options: ImagenOptions | None = None,
        *,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        start_images: Any = None,
        init_images: Any = None,
        mask: Any = None,
        cond_images: Any = None,
        return_stages: bool = False,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C), of the last trained stage.

        The images of one prompt stand together.

        Args:
          prompts: a caption, or a list of them; with stored text the pair (embeddings (P, L, D),
            mask (P, L)); None for a cascade without texts, which then makes `images_per_prompt`
            images.
          options: sampling options; None: the defaults of `ImagenOptions`. changes: single options
            by name, guidance=2.0.
          seed: the same seed gives the same images, whatever the batch size. A list has
            one for each prompt, or for each image.
          negative_prompts: what the images should not show, one per prompt or one string for all;
            guidance then starts from there.
          start_images: for a start after the first stage (`options.start_at`). They are first
            brought to the size of the stage before it: that is what the network has learnt to
            enlarge, anything sharper it has never seen.
          init_images: images to change by `options.strength` or, with `mask`, to inpaint. A mask is
            white or True where to keep, see `given.masks`.
          cond_images: for a cascade that is conditioned on images; they are brought to the size of
            the last stage, as in training. All of these are images in any form and size, one per
            prompt or one for all, see `given.images`.
          return_stages: a list with the images of every stage that ran. return_pil: lists of PIL
            images.
          batch_size: images made at a time; None: all. progress: shows a bar for each stage.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        inputs = {"start_images": start_images, "init_images": init_images, "mask": mask}
        options = calls.with_changes(ImagenOptions, options, changes, inputs)
        scales = options.per_stage("guidance", len(self.task.stages))
        running = self._of_running(options, scales)
        prompt = self._texts(prompts, negative_prompts, running)
        return self._generated(
            options,
            prompt,
            scales,
            seed=seed,
            images_per_prompt=images_per_prompt,
            start_images=start_images,
            init_images=init_images,
            mask=mask,
            cond_images=cond_images,
            return_stages=return_stages,
            return_pil=return_pil,
            batch_size=batch_size,
            progress=progress,
        )

    @property
    def upscales(self) -> bool:
        """Whether there is a stage that enlarges what another one made."""
        return len(self.task.stages) > 1

    def upscale(
        self, images: Any, prompts: Any = None, options: ImagenOptions | None = None, **others: Any
    ) -> np.ndarray:
        """Images of the last trained stage, from images that take the first stage's place.

        Args:
          images: in any form and size, see `given.images`.
          prompts: one per image, for a cascade with texts; None: none, as of images whose captions
            training dropped, and no guidance.
          options: sampling options; None: the defaults of `ImagenOptions`. It starts at stage 2
            where they name none. A stop of theirs before that is left out: it is for images that
            the first stage makes. others: of `generate`.
        """
        if not self.upscales:
            return super().upscale(images)
        count = given.count_of(images=images)
        prompts, changes = self._enlarging(count, prompts, options, others)
        return self.generate(prompts, options, **changes, start_images=images)

    def check_upscale(
        self,
        prompts: Any = None,
        options: ImagenOptions | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        """Refuses what `upscale` refuses, with a blank image in place of any."""
        blank = np.zeros((_BLANK, _BLANK, self.task.channels), np.uint8)
        prompts, changes = self._enlarging(1, prompts, options, {})
        given_as = {"start_images": blank}
        options = calls.with_changes(ImagenOptions, options, changes, given_as)
        if (start := options.start_at or 2) > 2:
            notices.tell(
                f"start_at={start}, so that images to enlarge take the place of those of stage "
                f"{start - 1}"
            )
        scales = options.per_stage("guidance", len(self.task.stages))
        given_as |= dict.fromkeys(("init_images", "mask", "cond_images"))
        self._prepared(
            options, self._texts(prompts, None, self._of_running(options, scales)), scales, seed=0,
            images_per_prompt=1, batch_size=batch_size, progress=False, **given_as,
        )  # fmt: skip

    def _enlarging(self, count, prompts, options, others):
        """(prompts, further arguments) of `generate` that enlarges `count` images."""
        start, stop = (None, None) if options is None else (options.start_at, options.stop_at)
        found: dict[str, Any] = {"start_at": start or 2, **others}
        if stop is not None and "stop_at" not in found and stop < (found["start_at"] or 1):
            found["stop_at"] = None
            notices.tell(
                f"stop_at={stop} is left out, as images are enlarged from stage "
                f"{found['start_at']} on"
            )
        if prompts is None and self.task.text is not None:
            found["guidance"] = 1
            prompts = prompting.unprompted(self.task.text, count, self.task.cond_drop_prob)
        return prompts, found

    def _texts(self, prompts, negative_prompts, scales):
        if self.task.text is None:
            if prompts is not None or negative_prompts is not None:
                raise UserError(
                    "prompts are given to a cascade that was trained without texts; leave them out."
                )
            return {}
        if prompts is None:
            raise UserError(
                "prompts=None: this cascade was trained on captions; give a list of them."
            )
        guided = any(scale != 1 for scale in scales)
        found = prompting.texts(
            self.task.text, self.text_tokenizer, prompts, negative_prompts, guided=guided,
            dropped=self.task.cond_drop_prob,
        )  # fmt: skip
        if isinstance(prompts, prompting.Dropped):
            return {**found, "dropped": np.ones((prompts.count,), bool)}
        prompting.tell_unread(found, self.task.text_lengths)
        return found

    def _program(self, params: Any, prompt: Mapping[str, Any], keys_B: Any, **settings: Any) -> Any:
        """Images of one stage."""
        return sampling.generate(
            params, self.frozen, prompt, keys_B, task=self._sampled_task, **settings
        )
