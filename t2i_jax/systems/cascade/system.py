"""A trained cascade, whatever its stages are conditioned on: stage after stage, images inpainted,
changed and enlarged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.diffusion import progress as bars
from t2i_jax.diffusion.sdedit import steps_to_skip
from t2i_jax.errors import UserError
from t2i_jax.pixels import SIGNED, as_pil, to_float, to_uint8
from t2i_jax.systems import batching, calls, given, notices, placing, prompting
from t2i_jax.systems.cascade import inputs
from t2i_jax.systems.cascade.stage import StageSampling, group, sampling_of, smaller
from t2i_jax.systems.text_to_image import TextToImage


@dataclasses.dataclass(frozen=True)
class CascadeSystem(TextToImage):
    """A trained cascade.

    A subclass has `generate`, which ends with `_generated`, and `_program`, which makes the images
    of one stage.

    Attributes:
      task: the task that trained it; its `stages` are those that run.
      weights: {"stage_1": parameters, ...}.
      updates: of each stage, how often it was trained.
      frozen: weights of frozen networks by name.
      text_tokenizer: captions to ids; None where prompts are embeddings or there are none.
      mesh: on which it samples, see `placing.on_mesh`; None: one device.
    """

    task: Any
    weights: Mapping[str, Any]
    updates: Mapping[str, int]
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_tokenizer: Any = None
    mesh: Any = None

    def offloaded(self) -> CascadeSystem:
        """The same system, see `placing.offloaded`: of its stages only the one that runs is on
        the device.
        """
        return placing.offloaded(self)

    @functools.cached_property
    def _sampled_task(self) -> Any:
        """The task of which programs that sample are compiled: one program for a stage, whichever
        of them train.
        """
        return dataclasses.replace(self.task, train_stages=None)

    def _program(self, params: Any, prompt: Mapping[str, Any], keys_B: Any, **settings: Any) -> Any:
        """Images (B, H, W, C) in [-1, 1] of one stage.

        Args:
          params: of its group. prompt: arrays, a row per image. settings: "number", "size",
            "sampling", "guidance" and "lowres_level" of the stage.
        """
        raise NotImplementedError

    def _generated(
        self,
        options: Any,
        prompt: Mapping[str, np.ndarray],
        scales: list[float],
        *,
        return_stages: bool,
        return_pil: bool,
        progress: bool,
        **others: Any,
    ) -> Any:
        """The result of `generate`.

        Args:
          options: sampling options. prompt: the arrays that the images are conditioned on, a row
            per prompt; {}: none. scales: of guidance, per stage. The others are those of
            `generate`.
        """
        plan, batches = self._prepared(options, prompt, scales, progress=progress, **others)
        results: list[list[np.ndarray]] = [[] for _ in plan]
        for rows in batches:
            for made, part in zip(
                results, self._run(plan, rows, options.lowres_level, progress), strict=True
            ):
                made.append(part[: rows.count])
        stages = [np.concatenate(made) for made in results]
        if return_pil:
            stages = [as_pil(images) for images in stages]
        return stages if return_stages else stages[-1]

    def _prepared(
        self,
        options: Any,
        prompt: Mapping[str, np.ndarray],
        scales: list[float],
        *,
        seed: int | Sequence[int],
        images_per_prompt: int,
        start_images: Any,
        init_images: Any,
        mask: Any,
        cond_images: Any,
        batch_size: int | None,
        progress: bool,
    ) -> tuple[dict[int, Any], Iterator[batching.Rows]]:
        """(the plan of the stages that run, what they are given batch by batch); arguments as of
        `_generated`.

        Raises:
          UserError: what does not fit.
        """
        count_of = len(self.task.stages)
        numbers, told = self._to_run(options)
        calls.check_amounts(images_per_prompt, batch_size)
        count = (
            len(next(iter(prompt.values())))
            if prompt
            else given.count_of(
                start_images=start_images, init_images=init_images, cond_images=cond_images
            )
        )
        sizes = inputs.sizes_of(self.task, options.image_sizes)
        images = self._images(
            numbers[0], count, sizes[: numbers[-1]], start_images, init_images, mask
        )
        images |= self._cond_image(count, sizes[-1], cond_images)
        inputs.check_lowres_level(self.task.stages, numbers, options.lowres_level)
        self._tell_idle(options, numbers, [] if prompt else scales)
        if "keep" in images:
            self._tell_kept({number: sizes[number - 1] for number in numbers}, images["keep"])
        plan = self._plan(options, sizes, scales if prompt else [1.0] * count_of, progress)
        if "init" in images and mask is None:
            size, first, scale = plan[numbers[0]]
            plan[numbers[0]] = (size, self._from_images(numbers[0], first, options), scale)
        for number in numbers:  # refuses more steps than a diffusion has, before any stage runs
            jax.eval_shape(functools.partial(self.task.stages[number - 1].levels, plan[number][1]))
        if told:
            notices.tell(told)
        if "start" in images:
            images["start"] = self._as_made_before(images["start"], plan, numbers[0])
        plan, total = {number: plan[number] for number in numbers}, count * images_per_prompt
        rows = batching.batches({**prompt, **images}, total, images_per_prompt, seed, batch_size)
        return plan, rows

    def made_size(self, options: Any, trained_at: int | None = None) -> int | None:
        """Side of the images of the last stage that runs with these options."""
        del trained_at
        return inputs.side_of(self.task, options, self._to_run(options)[0][-1])

    def samplers(self, options: Any) -> list[dict[str, Any]]:
        """The sampler and the steps of each stage."""
        stages = self.task.stages
        asked = (options.per_stage(name, len(stages)) for name in ("sampler", "steps"))
        found = itertools.starmap(sampling_of, zip(stages, *asked, strict=True))
        return [{"sampler": sampler, "steps": steps} for sampler, steps in found]

    def _to_run(self, options):
        """(numbers of the stages that run, a sentence for the user or None)."""
        counts = [int(self.updates.get(group(n), 0)) for n in range(1, len(self.task.stages) + 1)]
        return inputs.stages_to_run(self.task.stages, counts, options.start_at, options.stop_at)

    def _of_running(self, options: Any, scales: list[float]) -> list[float]:
        """The scales of the stages that run."""
        return [scales[number - 1] for number in self._to_run(options)[0]]

    def _tell_idle(self, options, numbers, unused):
        """Says which options this cascade has no use for; `unused` are scales of guidance."""
        noised = [n for n in numbers if n > 1 and self.task.stages[n - 1].lowres.noise]
        if options.lowres_level is not None and not noised:
            notices.tell(
                f"lowres_level={options.lowres_level} has no effect, as no stage that runs adds "
                "noise to a smaller image"
            )
        is_default = options.guidance == type(options).guidance
        if not is_default and any(scale != 1 for scale in unused):
            notices.tell(
                f"guidance={options.guidance} has no effect, as this system was trained without "
                "conditions"
            )

    def _tell_kept(self, sizes, keep_PHW):
        """Says what a mask (True: kept) keeps in a stage that does not work on single pixels.

        Args:
          sizes: by number of the stages that run.
        """

    def _plan(self, options, sizes, scales, progress):
        """The plan of a sampling run: (size, sampling, guidance) of each stage, by its number."""
        stages = self.task.stages
        samplers, steps = (options.per_stage(name, len(stages)) for name in ("sampler", "steps"))
        common = {
            name: getattr(options, name) for name in ("interval", "parallel", "resample", "compat")
        }
        made = (
            inputs.settings(*each, tell=progress, **common)
            for each in zip(stages, samplers, steps, scales, strict=True)
        )
        return dict(enumerate(zip(sizes, made, scales, strict=True), 1))

    def _from_images(self, number, sampling, options):
        """The sampling of the stage that begins with images."""
        if options.eta is None:
            return dataclasses.replace(
                sampling, skip=steps_to_skip(options.strength, sampling.steps)
            )
        asked = (options.per_stage(name, len(self.task.stages)) for name in ("sampler", "steps"))
        sampler, steps = (of[number - 1] for of in asked)
        if sampler not in (None, "ddim"):
            raise UserError(
                f"eta={options.eta} is of the sampler 'ddim' and sampler={sampler!r}; leave one of "
                "them out."
            )
        _, steps = sampling_of(self.task.stages[number - 1], "ddim", steps)
        return dataclasses.replace(
            sampling, sampler="ddim", steps=steps, churn=None, eta=options.eta
        )

    def _images(self, first, count, sizes, start_images, init_images, mask):
        """{"start", "init", "keep"} as far as they are given.

        Args:
          first: number of the first stage that runs. sizes: of the stages up to the last that runs.
        """
        found, channels = {}, self.task.channels
        if (start_images is None) != (first == 1):
            raise UserError(
                f"start_at={first} begins with the images of the stage before; give start_images."
                if first > 1
                else "start_images are what the stages before start_at make, and it begins with "
                "the first stage; give start_at=2 too, or leave start_images out."
            )
        if start_images is not None:
            read = given.images("start_images", start_images, count, channels)
            found["start"] = given.shaped("start_images", read, sizes[first - 2], self.crop)
        if init_images is not None and mask is None and first > 1:
            raise UserError(
                f"init_images change what the first stage makes, and start_at={first}; give a mask "
                "too."
            )
        if init_images is not None:
            read = given.images("init_images", init_images, count, channels)
            size = given.common_size(read, sizes[first - 1 :])
            found["init"] = given.fitted("init_images", read, size, self.crop)
            if mask is not None:
                masks = given.masks("mask", mask, read)
                found["keep"] = given.kept("mask", masks, read, size, self.crop, sizes[first - 1 :])
        elif mask is not None:
            raise UserError("mask says what to keep of init_images; give init_images too.")
        return found

    def _cond_image(self, count, size, cond_images):
        """{"cond_image"} at the size of the last stage and resampled, as training gives it to every
        stage; {} for a cascade without.
        """
        wanted = self.task.cond_image_channels
        if (cond_images is None) == bool(wanted):
            remedy = f"give uint8 images of {wanted} channels" if wanted else "leave them out"
            raise UserError(
                f"cond_images do not fit the cascade (cond_images_channels={wanted}); {remedy}."
            )
        if cond_images is None:
            return {}
        read = given.images("cond_images", cond_images, count, wanted)
        return {"cond_image": given.fitted("cond_images", read, size, self.crop)}

    def _as_made_before(self, images, plan, number):
        """Images in [-1, 1] of the size that the stage before `number` makes; each is resized from
        its own.
        """
        size, *_ = plan[number - 1]
        made = np.empty((len(images), *size, self.task.channels), np.float32)
        for shape in {image.shape for image in images}:
            rows = [i for i, image in enumerate(images) if image.shape == shape]
            floats = to_float(jnp.asarray(np.stack([images[i] for i in rows])), SIGNED)
            made[rows] = smaller(floats, size, self.task.stages[number - 1].resize)
        return made

    def _run(self, plan, rows, lowres_level, progress):
        """A batch's images of each stage of the plan, uint8."""
        part, results = dict(rows.arrays), []
        small = part.pop("start", None)
        for number, (size, settings, scale) in plan.items():
            small = self._stage(
                number, size, settings, scale, part, small, rows.keys_B, lowres_level, progress
            )
            images = np.asarray(to_uint8(small, SIGNED))
            if "keep" in part and part["init"].shape[1:3] == size:
                # bit for bit what was given
                images = np.where(part["keep"][..., None], part["init"], images)
            results.append(images)
        return results

    def _stage(
        self,
        number,
        size,
        settings: StageSampling,
        scale,
        part,
        small,
        keys,
        lowres_level,
        progress,
    ):
        prompt = dict(part) if settings.guided else prompting.without_negative(part)
        if "init" in prompt and "keep" not in prompt and small is not None:
            # only the first stage starts from it; the others enlarge what it made
            del prompt["init"]
        if "init" in prompt:
            prompt["init"] = to_float(jnp.asarray(prompt["init"]), SIGNED)
        if small is not None:
            prompt["small"] = small
        shown = (
            bars.bar(f"stage {number}", settings.steps - settings.skip)
            if progress
            else contextlib.nullcontext()
        )
        with shown, jax.set_mesh(self.mesh):
            return self._program(
                # those in the host's memory are here until the stage has run
                jax.device_put(self.weights[group(number)]),
                prompt,
                keys,
                number=number,
                size=size,
                sampling=settings,
                guidance=jnp.float32(scale),
                lowres_level=lowres_level,
            )
