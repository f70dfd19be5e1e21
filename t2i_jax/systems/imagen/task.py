"""Training and sampling a cascade of diffusion stages (Imagen, Saharia et al. 2022): a `Task`, a
group per stage.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.nn.flops import flops_of
from t2i_jax.pixels import SIGNED, to_float
from t2i_jax.systems import captions
from t2i_jax.systems.base import SystemTask
from t2i_jax.systems.cascade import stage as stages
from t2i_jax.systems.cascade.stage import Stage, StageSampling, group
from t2i_jax.systems.imagen import sampling
from t2i_jax.systems.imagen.options import ImagenOptions, per_stage
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.text_to_image import samples_of
from t2i_jax.types import Array, Batch, Key, Metrics, Objective, Params, SamplingProgram, Stats


@dataclasses.dataclass(frozen=True)
class ImagenTask(SystemTask):
    """Trains the stages of a cascade, each on its own: images from noise, then larger images from
    smaller ones.

        ImagenTask(
            stages=(Stage(Unet(dim=64), image_size=32), Stage(Unet(dim=32, memory_efficient=True),
            image_size=64)), text=T5Text.from_directory("google/t5-v1_1-base"),
        )

    Every step makes one update of each stage in `train_stages`, on the same images. Groups:
    "stage_1", "stage_2", ..., each {"unet": params} and, when the text encoder is trained along,
    "text": every stage has one of its own. `stats` counts the updates of each. `frozen` of the
    step: "text", the weights of a frozen encoder.

    Attributes:
      stages: from small to large.
      text: `LearnedText`, `T5Text` or `StoredText`; None: images without captions.
      cond_drop_prob: share of the captions that are dropped, for classifier-free guidance.
      channels: of the images.
      train_stages: numbers, from 1, of those that are trained; None: all. A run may change it when
        it resumes.
    """

    stages: tuple[Stage, ...]
    text: Any = None
    cond_drop_prob: float = 0.1
    channels: int = 3
    train_stages: tuple[int, ...] | None = None

    options: ClassVar[type] = ImagenOptions
    validated_by: ClassVar[str] = "loss/mean"

    def __post_init__(self):
        if isinstance(self.stages, Stage):
            object.__setattr__(self, "stages", (self.stages,))
        if not self.stages:
            raise UserError("stages=() is empty; give at least one Stage.")
        if not 0 <= self.cond_drop_prob <= 1:
            raise UserError(f"cond_drop_prob={self.cond_drop_prob} is outside [0, 1]; try 0.1.")
        sizes = [stage.image_size for stage in self.stages]
        if sizes != sorted(set(sizes)):
            raise UserError(
                f"stages have image_size {sizes}; each must be larger than the one before."
            )
        for number, stage in enumerate(self.stages, 1):
            if number == 1 and stage.crop_size is not None:
                crop = stage.crop_size
                raise UserError(
                    f"stages[0].crop_size={crop}: the first stage needs whole images; leave it out."
                )
            if number > 1 and not stage.trains:
                raise UserError(
                    f"stages[{number - 1}].unet is a NullUnet; only a first stage can be left out."
                )
        for number in self.train_stages or ():
            if number not in self._trainable:
                known = ", ".join(map(str, self._trainable))
                raise UserError(
                    f"train_stages={self.train_stages} names {number}; stages that train: {known}."
                )
        if self.train_stages == ():
            raise UserError("train_stages=() trains nothing; name stages from 1, or None for all.")

    @functools.cached_property
    def networks(self) -> tuple[Any, ...]:
        """The U-Nets as they stand in the cascade."""
        made = []
        for i, stage in enumerate(self.stages):
            fields = {
                "lowres_cond": i > 0,
                "channels": self.channels,
                "cond_on_text": self.text is not None,
            }
            if self.text is not None:
                fields["text_embed_dim"] = self.text.dim
            made.append(stage.unet.clone(parent=None, **fields) if stage.trains else stage.unet)
        return tuple(made)

    @property
    def image_size(self) -> int:
        """Side of the images of a batch: that of the largest stage."""
        return self.stages[-1].image_size

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The diffusion loss of each stage that is trained."""
        return tuple(
            Objective(group(n), functools.partial(self.loss, number=n)) for n in self._trained
        )

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """All stages are averaged."""
        return tuple(group(number) for number in self._trainable)

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) by stage, and the counts of updates."""
        params = {}
        for number in self._trainable:
            for_unet, for_text = jax.random.split(jax.random.fold_in(key, number))
            params[group(number)] = {"unet": self._init_unet(for_unet, number)}
            if self.text is not None and self.text.trainable:
                params[group(number)]["text"] = self.text.init(for_text)
        return params, {"updates": {group(number): jnp.int32(0) for number in self._trainable}}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images at the size of the last stage; text ids or embeddings with their mask.

        Images to condition on.
        """

        def of(dtype, *shape):
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

        spec = {"image": of(jnp.uint8, self.image_size, self.image_size, self.channels)}
        spec |= captions.spec(self.text, batch_size)
        if self.cond_image_channels:
            spec["cond_image"] = of(
                jnp.uint8, self.image_size, self.image_size, self.cond_image_channels
            )
        return spec

    @property
    def inputs(self) -> tuple[str, ...]:
        """Negative prompts with texts; images to change or complete.

        Images to condition on where the U-Nets take some.
        """
        names = ("negative_prompts",) if self.text is not None else ()
        return (
            *names,
            "init_images",
            "mask",
            *(("cond_images",) if self.cond_image_channels else ()),
        )

    @property
    def samples(self) -> tuple[str, ...]:
        """Captions, with their embeddings where these are stored; images to condition on."""
        return samples_of(self.text, *(("cond_image",) if self.cond_image_channels else ()))

    def check_options(self, options: ImagenOptions) -> None:
        """Refuses a tuple of values that has not one for each stage."""
        for name in ("guidance", "sampler", "steps", "image_sizes"):
            per_stage(f"evaluation.options.{name}", getattr(options, name), len(self.stages))

    def adapted(self, options: ImagenOptions, defaults: ImagenOptions) -> ImagenOptions:
        """The options; with another sampler than the recipe's, steps are that sampler's own."""
        if options.sampler != defaults.sampler and options.steps == defaults.steps:
            return dataclasses.replace(options, steps=None)
        return options

    def system(
        self, params, stats: Stats, parts, frozen: Mapping[str, Any], text_tokenizer: Any
    ) -> ImagenSystem:
        """The trained cascade."""
        return ImagenSystem(self, params, jax.device_get(stats["updates"]), frozen, text_tokenizer)

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """A program per stage."""
        made = {}

        def of(side, dtype, channels):
            return jax.ShapeDtypeStruct((batch_size, side, side, channels), dtype)

        for number in self._trained:
            stage, prompt = self.stages[number - 1], dict(captions.spec(self.text, batch_size))
            sampler, steps = stages.sampling_of(stage)
            churn = stage.churn if sampler == "heun" else None
            settings = StageSampling(
                sampler, steps, churn, stage.percentile, guided=self.text is not None
            )
            if number > 1:
                prompt |= {
                    "small": of(self.stages[number - 2].image_size, jnp.float32, self.channels)
                }
            if self.networks[number - 1].cond_images_channels:
                prompt |= {"cond_image": of(stage.image_size, jnp.uint8, self.cond_image_channels)}
            size = (stage.image_size, stage.image_size)
            function = functools.partial(
                sampling.generate, task=self, number=number, size=size, sampling=settings
            )
            made[f"stage {number}"] = SamplingProgram(group(number), function, prompt)
        return made

    @property
    def cond_image_channels(self) -> int:
        """Of the images to condition on; 0: there are none."""
        return max((network.cond_images_channels for network in self.networks), default=0)

    def loss(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array, *, number: int
    ):
        """(loss, (metrics, stats)) of a stage, a mean over the batch."""
        for_draws, for_text, for_dropout = jax.random.split(key, 3)
        shape = batch["image"].shape
        stage = dataclasses.replace(self.stages[number - 1], unet=self.networks[number - 1])
        draws = stages.draw(stage, for_draws, shape, self.cond_drop_prob, lowres=number > 1)
        own = params[group(number)]
        bind = stages.bound(
            stage.unet, own["unet"], self.embed(own, frozen, batch, for_text), dropout=for_dropout
        )
        previous = self.stages[number - 2].image_size if number > 1 else None
        image, cond = to_float(batch["image"], SIGNED), stages.cond_image_of(stage.unet, batch)
        loss = jnp.mean(stages.losses(stage, bind, image, draws, previous, cond))
        metrics = {f"loss/{group(number)}": loss}
        if number == self._trained[0]:
            metrics["loss"] = loss
        updates = {**stats["updates"], group(number): stats["updates"][group(number)] + 1}
        return loss, (metrics, {**stats, "updates": updates})

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The losses of the trained stages with all captions, at noise that the key draws, and
        `loss/mean` over the stages.
        """
        told = dataclasses.replace(self, cond_drop_prob=0.0, text=captions.quiet(self.text))
        found = super(ImagenTask, told).validate(params, stats, frozen, batch, key, step)
        losses = jnp.stack([found[f"loss/{group(number)}"] for number in self._trained])
        return {**found, "loss/mean": jnp.mean(losses)}

    def embed(
        self, params: Params, frozen: Any, batch: Batch, key: Key | None = None
    ) -> tuple[Array, Array] | None:
        """(embeddings (B, L, D), mask (B, L)) of the batch's texts; None without texts."""
        if self.text is None:
            return None
        return captions.embed(self.text, params, frozen, batch, key), batch["text_mask"]

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks: 3 forward passes.

        A frozen text encoder runs one.
        """
        once = frozen = 0.0
        texts = captions.spec(self.text, 1)
        for number in self._trained:
            params = jax.eval_shape(
                functools.partial(self._init_unet, number=number), jax.random.key(0)
            )
            once += flops_of(functools.partial(self._forward, number), sharding.unbox(params))
            if self.text is not None and self.text.trainable:  # every stage has one of its own
                encoder = sharding.unbox(jax.eval_shape(self.text.init, jax.random.key(0)))
                once += flops_of(self.text.embed, encoder, *texts.values())
        if self.text is not None and (encoder := self.text.frozen_shapes()):
            frozen = flops_of(self.text.embed, encoder["text"], *texts.values())
        return batch_size * (3 * once + frozen)

    @property
    def _trained(self):
        return self.train_stages or self._trainable

    @property
    def _trainable(self):
        return tuple(number for number, stage in enumerate(self.stages, 1) if stage.trains)

    def _init_unet(self, key, number):
        inputs = self._zeros(number)
        return self.networks[number - 1].init(key, **inputs)["params"]

    def _forward(self, number, params):
        return self.networks[number - 1].apply({"params": params}, **self._zeros(number))

    def _zeros(self, number):
        """Inputs of a stage's network for one image."""
        stage, network = self.stages[number - 1], self.networks[number - 1]
        side = stage.crop_size or stage.image_size
        inputs = {
            "x_BHWC": jnp.zeros((1, side, side, self.channels)),
            "condition_B": jnp.zeros((1,)),
        }
        if self.text is not None:
            inputs["text_embeds_BLD"] = jnp.zeros((1, self.text.max_length, self.text.dim))
        if number > 1:
            inputs |= {"lowres_BHWC": inputs["x_BHWC"], "lowres_condition_B": jnp.zeros((1,))}
        if network.cond_images_channels:
            inputs["cond_image_BHWC"] = jnp.zeros((1, side, side, network.cond_images_channels))
        return inputs
