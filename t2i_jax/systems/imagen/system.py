"""A trained cascade: captions, or nothing at all, to pictures; pictures repaired, changed and enlarged."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.diffusion import progress as bars
from t2i_jax.diffusion.sdedit import steps_to_skip
from t2i_jax.errors import UserError
from t2i_jax.pixels import as_pil, to_float, to_uint8
from t2i_jax.systems import prompts as prompting
from t2i_jax.systems.cascade import inputs
from t2i_jax.systems.cascade.stage import Sampling
from t2i_jax.systems.imagen.task import ImagenTask, generate, group
from t2i_jax.types import Array

_RANGE = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class ImagenSystem:
    """A trained cascade.

    Attributes:
      task: what it was trained as.
      weights: {"stage_1": {"unet", "text"}, ...}.
      updates: of each stage, how often it was trained.
      frozen: {"text": weights of a frozen encoder}.
      text_tokenizer: captions to ids; None where prompts are embeddings or there are none.
      mesh: over which it samples, see `placement.on_mesh`; None: one device.
    """

    task: ImagenTask
    weights: Mapping[str, Any]
    updates: Mapping[str, int]
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_tokenizer: Any = None
    mesh: Any = None

    def generate(
        self,
        prompts: Sequence[str] | tuple[Array, Array] | None = None,
        *,
        seed: int = 0,
        guidance: float | Sequence[float] = 3.0,
        sampler: str | Sequence[str] | None = None,
        steps: int | Sequence[int] | None = None,
        parallel: float = 1.0,
        interval: tuple[float, float] | None = None,
        images_per_prompt: int = 1,
        negative_prompts: Sequence[str] | tuple[Array, Array] | None = None,
        start_at: int | None = None,
        stop_at: int | None = None,
        start_images: Array | None = None,
        init_images: Array | None = None,
        mask: Array | None = None,
        strength: float = 0.6,
        resample: int = 5,
        cond_images: Array | None = None,
        lowres_level: float | None = None,
        image_sizes: Sequence[int | tuple[int, int]] | None = None,
        return_stages: bool = False,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        compat: str | None = None,
    ) -> Any:
        """Pictures, uint8 (prompts * images_per_prompt, H, W, C), of the last trained stage; a prompt's stand together.

        Where a value may be "per stage" give one for all, or one for each stage of the cascade.

        Args:
          prompts: captions; with stored text the pair (embeddings (P, L, D), mask (P, L)); None for a cascade without
            texts, which then makes `images_per_prompt` pictures.
          seed: the same seed gives the same pictures, whatever the batch size.
          guidance: per stage; 1 is none. parallel: the part of it along the network's answer that stays, 0 to 1;
            imagen-pytorch 2.1.0 has 0. interval: (low, high) of sigma / alpha where it works; None: everywhere.
          sampler: per stage, "ancestral", "ddim", "heun" or "dpm_solver". steps: per stage. None: the stage's own.
          negative_prompts: what the pictures should not show, one per prompt; guidance then starts from there.
          start_at, stop_at: numbers of the first and last stage to run. start_images: uint8 pictures of any size, one
            per prompt, for a start after the first stage: they are enlarged.
          init_images: uint8 pictures of any size, one per prompt, to change (by `strength`, from above 0 to 1) or, with
            `mask`, to complete: bool (H, W) or (P, H, W), True where to keep. resample: how often each step of a
            completion is made.
          cond_images: uint8 pictures, one per prompt, for a cascade that is conditioned on them.
          lowres_level: of the noise on each smaller picture, from 0 to 1; None: the stage's own.
          image_sizes: side or (height, width) per stage; None: those of training.
          return_stages: a list with the pictures of every stage that ran. return_pil: lists of PIL images.
          batch_size: pictures made at a time; None: all. progress: shows a bar.
          compat: "imagen-pytorch": noise levels of completions and changed pictures as that package has them.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        count_of = len(self.task.stages)
        updates = [int(self.updates.get(group(number), 0)) for number in range(1, count_of + 1)]
        numbers, told = inputs.stages_to_run(self.task.stages, updates, start_at, stop_at)
        for name, value in (("images_per_prompt", images_per_prompt), ("batch_size", batch_size), ("resample", resample)):
            prompting.check_count(name, value)
        for name, value in (("parallel", parallel), ("lowres_level", lowres_level), ("strength", strength)):
            inputs.check_fraction(name, value)
        scales = inputs.per_stage("guidance", guidance, count_of)
        for scale in scales:
            inputs.check_finite("guidance", scale)
        prompt = self._texts(prompts, negative_prompts, scales)
        given = (start_images, init_images, cond_images)
        count = len(prompt["text_mask"]) if prompt else next((len(a) for a in given if a is not None), 1)
        pictures = self._pictures(numbers[0], count, start_images, init_images, mask, cond_images)
        common = {"interval": interval, "parallel": parallel, "resample": resample, "compat": compat, "tell": progress}
        plan = self._plan(sampler, steps, scales if prompt else [1.0] * count_of, image_sizes, common)
        if "init" in pictures and mask is None:
            size, first, scale = plan[numbers[0]]
            plan[numbers[0]] = (size, dataclasses.replace(first, skip=steps_to_skip(strength, first.steps)), scale)
        if told:
            print(f"t2i: {told}.", file=sys.stderr)
        plan, total = {number: plan[number] for number in numbers}, count * images_per_prompt
        rows = {name: np.repeat(value, images_per_prompt, axis=0) for name, value in (prompt | pictures).items()}
        results = self._run(plan, rows, total, seed, batch_size, lowres_level, progress)
        if return_pil:
            results = [as_pil(images) for images in results]
        return results if return_stages else results[-1]

    def upscale(self, images: Array, prompts: Any = None, **options: Any) -> np.ndarray:
        """Pictures of the last trained stage, from uint8 pictures of any size, which take the first stage's place.

        Args:
          prompts: one per picture, for a cascade with texts; None: no text, and no guidance. options: of `generate`.
        """
        if prompts is None and self.task.text is not None:
            prompts, options = self._no_texts(len(images)), {**options, "guidance": 1}
        return self.generate(prompts, **{"start_at": 2, **options}, start_images=images)

    def _no_texts(self, count):
        text = self.task.text
        if text.entry == "text_embeds":
            return np.zeros((count, text.max_length, text.dim), np.float32), np.zeros((count, text.max_length), bool)
        return [""] * count

    def _texts(self, prompts, negative_prompts, scales):
        if self.task.text is None:
            if prompts is not None or negative_prompts is not None:
                raise UserError("prompts are given to a cascade that was trained without texts; leave them out.")
            return {}
        if prompts is None:
            raise UserError("prompts=None: this cascade was trained on captions; give a list of them.")
        prompt = prompting.encode(self.task.text, self.text_tokenizer, prompts, "prompts")
        if negative_prompts is not None:
            if all(scale == 1 for scale in scales):
                raise UserError("negative_prompts have no effect at guidance=1; raise the guidance or leave them out.")
            negative = prompting.encode(self.task.text, self.text_tokenizer, negative_prompts, "negative_prompts")
            prompt |= prompting.negatives(negative, len(prompt["text_mask"]))
        return prompt

    def _plan(self, sampler, steps, scales, image_sizes, common):
        """By number: (size, sampling, guidance) of each stage."""
        stages = self.task.stages
        of_sampler, of_steps = (
            inputs.per_stage(name, value, len(stages)) for name, value in (("sampler", sampler), ("steps", steps))
        )
        sizes = inputs.sizes_of(stages, image_sizes)
        made = (inputs.settings(*each, **common) for each in zip(stages, of_sampler, of_steps, scales, strict=True))
        return {number: each for number, each in enumerate(zip(sizes, made, scales, strict=True), 1)}

    def _pictures(self, first, count, start_images, init_images, mask, cond_images):
        """{"start", "init", "keep", "cond_image"} as far as they are given."""
        found, channels = {}, self.task.channels
        if (start_images is None) != (first == 1):
            remedy = "give start_images" if first > 1 else "leave start_images out, or start_at=2"
            raise UserError(f"start_at={first} does not fit start_images; {remedy}.")
        if start_images is not None:
            found["start"] = inputs.pictures("start_images", start_images, count, channels)
        if init_images is not None and mask is None and first > 1:
            raise UserError(f"init_images change what the first stage makes, and start_at={first}; give a mask too.")
        if init_images is not None:
            found["init"] = inputs.pictures("init_images", init_images, count, channels)
        if mask is not None:
            found["keep"] = inputs.known(mask, found.get("init"))
        if (cond_images is None) == bool(self.task.cond_image_channels):
            wanted = self.task.cond_image_channels
            remedy = f"give uint8 pictures of {wanted} channels" if wanted else "leave them out"
            raise UserError(f"cond_images do not fit the cascade (cond_images_channels={wanted}); {remedy}.")
        if cond_images is not None:
            found["cond_image"] = inputs.pictures("cond_images", cond_images, count, self.task.cond_image_channels)
        return found

    def _run(self, plan, rows, total, seed, batch_size, lowres_level, progress):
        """The pictures of each stage of the plan, uint8."""
        batch_size = min(batch_size or total, total)
        results: list[list[np.ndarray]] = [[] for _ in plan]
        for start in range(0, total, batch_size):
            index = np.minimum(np.arange(start, start + batch_size), total - 1)  # the last batch is filled up
            part = {name: value[index] for name, value in rows.items()}
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(index))
            small = to_float(jnp.asarray(part.pop("start")), _RANGE) if "start" in part else None
            for made, (number, (size, sampling, scale)) in zip(results, plan.items(), strict=True):
                small = self._stage(number, size, sampling, scale, part, small, keys, lowres_level, progress)
                images = np.asarray(to_uint8(small, _RANGE))
                if "keep" in part and part["init"].shape[1:3] == size:
                    images = np.where(part["keep"][..., None], part["init"], images)  # bit for bit what was given
                made.append(images[: total - start])
        return [np.concatenate(images) for images in results]

    def _stage(self, number, size, sampling: Sampling, scale, part, small, keys, lowres_level, progress):
        prompt = {name: value for name, value in part.items() if sampling.guided or not name.startswith("negative_")}
        if "init" in prompt and "keep" not in prompt and small is not None:
            del prompt["init"]  # only the first stage starts from it; the others enlarge what it made
        if "init" in prompt:
            prompt["init"] = to_float(jnp.asarray(prompt["init"]), _RANGE)
        if small is not None:
            prompt["small"] = small
        shown = bars.bar(f"stage {number}", sampling.steps - sampling.skip) if progress else contextlib.nullcontext()
        with shown, jax.set_mesh(self.mesh):
            return generate(
                self.weights[group(number)], self.frozen, prompt, keys, task=self.task, number=number, size=size,
                sampling=sampling, guidance=jnp.float32(scale), lowres_level=lowres_level,
            )  # fmt: skip
