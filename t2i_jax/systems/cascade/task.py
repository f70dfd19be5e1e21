"""The base of all tasks that train a cascade: a group per stage, each on its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.nn.flops import flops_of
from t2i_jax.systems.base import SystemTask
from t2i_jax.systems.cascade import inputs
from t2i_jax.systems.cascade.options import CascadeOptions, per_stage
from t2i_jax.systems.cascade.stage import group
from t2i_jax.types import Array, Batch, Key, Metrics, Objective, Params, SamplingProgram, Stats

_ANY_GUIDANCE = 2.0  # any scale other than 1 gives the guided program, of which it is an argument


class CascadeTask(SystemTask):
    """A task with the fields `stages`, `channels` and `train_stages`.

    A subclass has the U-Nets as they stand in the cascade (`networks`), the inputs of one for an
    image (`_zeros`), and the loss of a stage (`loss`), which ends with `_told`.
    """

    stages: Any
    channels: Any
    train_stages: Any
    networks: Any
    loss: Any
    _zeros: Any

    validated_by: ClassVar[str] = "loss/mean"
    makes_images: ClassVar[bool] = True

    @property
    def image_size(self) -> int:
        """Side of the images of a batch: that of the largest stage."""
        return self.stages[-1].image_size

    def made_size(self, options: CascadeOptions, trained_at: int | None = None) -> int | None:
        """Side of the images of the last stage that runs, as far as a task can know it: that of
        `stop_at`, else the last one that is trained.
        """
        del trained_at
        return inputs.side_of(self, options, options.stop_at or max(self._trained))

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The diffusion loss of each stage that is trained."""
        return tuple(
            Objective(group(n), functools.partial(self.loss, number=n)) for n in self._trained
        )

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """The groups with EMA weights: all stages that are trained."""
        return tuple(group(number) for number in self._trainable)

    @property
    def idle_groups(self) -> tuple[str, ...]:
        """The stages that are not trained: each learns from images, not from the stage before."""
        return tuple(group(number) for number in self._trainable if number not in self._trained)

    def check_options(self, options: CascadeOptions) -> None:
        """Refuses a tuple of values that has not one for each stage."""
        for name in ("guidance", "sampler", "steps", "image_sizes"):
            per_stage(f"evaluation.options.{name}", getattr(options, name), len(self.stages))

    def check_size(self, number: int, size: tuple[int, int]) -> None:
        """Refuses a size (height, width) of images that the stage with this number, from 1, can't
        make.
        """
        inputs.check_size(size, self.stages[number - 1].multiple)

    def check_sampling(self, options: CascadeOptions) -> None:
        """Refuses a `lowres_level` beyond what the stages that enlarge are trained at."""
        numbers, field = range(1, len(self.stages) + 1), "evaluation.options.lowres_level"
        inputs.check_lowres_level(self.stages, numbers, options.lowres_level, field)

    def adapted(
        self, options: CascadeOptions, defaults: CascadeOptions, given: Collection[str]
    ) -> CascadeOptions:
        """The options; with another sampler than the recipe's, steps that are not given are that
        sampler's own.
        """
        if options.sampler != defaults.sampler and "steps" not in given:
            return dataclasses.replace(options, steps=None)
        return options

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The losses of the trained stages at noise that the key draws, and `loss/mean` over the
        stages.
        """
        found = super().validate(params, stats, frozen, batch, key, step)
        losses = jnp.stack([found[f"loss/{group(number)}"] for number in self._trained])
        return {**found, "loss/mean": jnp.mean(losses)}

    def after_update(
        self, params: Mapping[str, Params], stats: Stats, batch: Batch, key: Key, step: Array
    ):
        """Counts the update of each stage that is trained; returns `(params, stats)`.

        Not in the loss, of which a step has one for each micro-batch.
        """
        mine = map(group, self._trained)
        counts = {**stats["updates"], **{name: stats["updates"][name] + 1 for name in mine}}
        return params, {**stats, "updates": counts}

    def _told(self, losses_B, stats, number):
        """(loss, (metrics, stats)) of a stage, from the loss of each row."""
        loss = jnp.mean(losses_B)
        metrics = {f"loss/{group(number)}": loss}
        if number == self._trained[0]:
            metrics["loss"] = loss
        return loss, (metrics, stats)

    def _programs(
        self,
        generate: Callable[..., Array],
        prompt: Callable[[int], Mapping[str, Any]],
        batch_size: int,
        guided: bool,
    ) -> Mapping[str, SamplingProgram]:
        """A program per trained stage.

        Args:
          generate: makes the images of a stage. prompt: from a stage's number to its conditions.
        """
        made = {}
        for number in self._trained:
            stage, given = self.stages[number - 1], dict(prompt(number))
            if number > 1:
                side = self.stages[number - 2].image_size
                shape = (batch_size, side, side, self.channels)
                given["small"] = jax.ShapeDtypeStruct(shape, jnp.float32)
            settings = inputs.settings(stage, None, None, _ANY_GUIDANCE if guided else 1.0)
            size = (stage.image_size, stage.image_size)
            function = functools.partial(
                generate, task=self, number=number, size=size, sampling=settings
            )
            made[f"stage {number}"] = SamplingProgram(group(number), function, given)
        return made

    def _unet_flops(self, number):
        """FLOPs of a forward pass of a stage's U-Net for one image."""
        init = functools.partial(self._init_unet, number=number)
        params = sharding.unbox(jax.eval_shape(init, jax.random.key(0)))
        return flops_of(functools.partial(self._forward, number), params)

    @property
    def _trained(self):
        return self.train_stages or self._trainable

    @property
    def _trainable(self):
        return tuple(number for number, stage in enumerate(self.stages, 1) if stage.trains)

    def _init_unet(self, key, number):
        return self.networks[number - 1].init(key, **self._zeros(number))["params"]

    def _forward(self, number, params):
        return self.networks[number - 1].apply({"params": params}, **self._zeros(number))


def idle_in_stages(
    stages: tuple[Any, ...], set_of: Callable[[int], Mapping[str, Any]]
) -> dict[str, str]:
    """The fields of stages without an effect, see `config.idle`: conditions on a smaller image of
    the first, and what the task sets otherwise on its U-Nets.

    Args:
      set_of: from the index of a stage to the fields that its U-Net gets.
    """
    found = {"stages.0.lowres": "the first stage, which enlarges no image"}
    for i, stage in enumerate(stages):
        for name, value in set_of(i).items() if stage.trains else ():
            if getattr(stage.unet, name) != value:
                found[f"stages.{i}.unet.{name}"] = f"{name}={value!r}, which the task sets"
    return found


def check_stages(stages: tuple[Any, ...], train_stages: tuple[int, ...] | None, kind: str) -> None:
    """Refuses stages that make no cascade.

    Args:
      kind: what a stage is called, "Stage".

    Raises:
      UserError: what is wrong and the remedy.
    """
    if not stages:
        raise UserError(f"stages=() is empty; give at least one {kind}.")
    sizes = [stage.image_size for stage in stages]
    if sizes != sorted(set(sizes)):
        raise UserError(f"stages have image_size {sizes}; each must be larger than the one before.")
    if (crop := stages[0].crop_size) is not None:
        raise UserError(
            f"stages[0].crop_size={crop}: the first stage needs whole images; leave it out."
        )
    for i, stage in enumerate(stages):
        if i and not stage.trains:
            raise UserError(f"stages[{i}].unet is a NullUnet; only a first stage can be left out.")
    there = [number for number, stage in enumerate(stages, 1) if stage.trains]
    for number in train_stages or ():
        if number not in there:
            known = ", ".join(map(str, there))
            raise UserError(
                f"train_stages={train_stages} names {number}; stages that train: {known}."
            )
    if train_stages == ():
        raise UserError("train_stages=() trains nothing; name stages from 1, or None for all.")
