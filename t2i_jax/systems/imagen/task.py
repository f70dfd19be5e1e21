"""Training and sampling a cascade of diffusion stages (Imagen, Saharia et al. 2022): a `Task`, a group per stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.diffusion.draws import gaussian
from t2i_jax.errors import UserError
from t2i_jax.nn.flops import flops_of
from t2i_jax.pixels import to_float
from t2i_jax.systems import captions
from t2i_jax.systems.cascade import stage as imagen_stage
from t2i_jax.systems.cascade.stage import Sampling, Stage
from t2i_jax.types import Array, Batch, Key, Objective, Params, Stats

_RANGE = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class ImagenTask:
    """Trains the stages of a cascade, each on its own: pictures from noise, then larger pictures from smaller ones.

        ImagenTask(
            stages=(Stage(Unet(dim=64), image_size=32), Stage(Unet(dim=32, memory_efficient=True), image_size=64)),
            text=T5Text.from_directory("google/t5-v1_1-base"),
        )

    Every step makes one update of each stage in `train_stages`, on the same pictures. Groups: "stage_1", "stage_2", ...,
    each {"unet": params} and, when the text encoder is trained along, "text": every stage has one of its own. `stats`
    counts the updates of each. `frozen` of the step: "text", the weights of a frozen encoder.

    Attributes:
      stages: from small to large.
      text: `LearnedText`, `T5Text` or `StoredText`; None: pictures without captions.
      cond_drop_prob: share of the captions that are dropped, for classifier-free guidance.
      channels: of the pictures.
      train_stages: numbers, from 1, of those that are trained; None: all. A run may change it when it carries on.
    """

    stages: tuple[Stage, ...]
    text: Any = None
    cond_drop_prob: float = 0.1
    channels: int = 3
    train_stages: tuple[int, ...] | None = None

    sampling_options: ClassVar[tuple[str, ...]] = ("guidance", "sampler", "steps", "parallel", "stop_at", "strength")

    def __post_init__(self):
        if isinstance(self.stages, Stage):
            object.__setattr__(self, "stages", (self.stages,))
        if not self.stages:
            raise UserError("stages=() is empty; give at least one Stage.")
        if not 0 <= self.cond_drop_prob <= 1:
            raise UserError(f"cond_drop_prob={self.cond_drop_prob} is outside [0, 1]; try 0.1.")
        sizes = [stage.image_size for stage in self.stages]
        if sizes != sorted(set(sizes)):
            raise UserError(f"stages have image_size {sizes}; each must be larger than the one before.")
        for number, stage in enumerate(self.stages, 1):
            if number == 1 and stage.crop_size is not None:
                crop = stage.crop_size
                raise UserError(f"stages[0].crop_size={crop}: the first stage needs whole pictures; leave it out.")
            if number > 1 and not stage.trains:
                raise UserError(f"stages[{number - 1}].unet is a NullUnet; only a first stage can be left out.")
        for number in self.train_stages or ():
            if number not in self._trainable:
                known = ", ".join(map(str, self._trainable))
                raise UserError(f"train_stages={self.train_stages} names {number}; stages that train: {known}.")
        if self.train_stages == ():
            raise UserError("train_stages=() trains nothing; name stages from 1, or None for all.")

    @functools.cached_property
    def networks(self) -> tuple[Any, ...]:
        """The U-Nets as they stand in the cascade."""
        made = []
        for i, stage in enumerate(self.stages):
            fields = {"lowres_cond": i > 0, "channels": self.channels, "cond_on_text": self.text is not None}
            if self.text is not None:
                fields["text_embed_dim"] = self.text.dim
            made.append(stage.unet.clone(parent=None, **fields) if stage.trains else stage.unet)
        return tuple(made)

    @property
    def image_size(self) -> int:
        """Side of the pictures of a batch: that of the largest stage."""
        return self.stages[-1].image_size

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The diffusion loss of each stage that is trained."""
        return tuple(Objective(group(n), functools.partial(self.loss, number=n)) for n in self._trained)

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
        """Images at the size of the last stage; text ids or embeddings with their mask; pictures to condition on."""
        of = lambda dtype, *shape: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        spec = {"image": of(jnp.uint8, self.image_size, self.image_size, self.channels)}
        spec |= captions.spec(self.text, batch_size)
        if self.cond_image_channels:
            spec["cond_image"] = of(jnp.uint8, self.image_size, self.image_size, self.cond_image_channels)
        return spec

    def frozen_shapes(self) -> Mapping[str, Any]:
        """Shapes of the parameters that the step reads and never changes."""
        return captions.frozen_shapes(self.text)

    def sampling_programs(self, batch_size: int) -> Mapping[str, tuple[str, Any, Mapping[str, jax.ShapeDtypeStruct]]]:
        """{name: (group, `function(params of group, frozen, prompt, keys)`, shapes of prompt)}, one per stage."""
        made = {}
        of = lambda side, dtype, channels: jax.ShapeDtypeStruct((batch_size, side, side, channels), dtype)
        for number in self._trained:
            stage, prompt = self.stages[number - 1], captions.spec(self.text, batch_size)
            sampler, steps = imagen_stage.sampling_of(stage)
            churn = stage.churn if sampler == "heun" else None
            sampling = Sampling(sampler, steps, churn, stage.percentile, guided=self.text is not None)
            if number > 1:
                prompt |= {"small": of(self.stages[number - 2].image_size, jnp.float32, self.channels)}
            if self.networks[number - 1].cond_images_channels:
                prompt |= {"cond_image": of(stage.image_size, jnp.uint8, self.cond_image_channels)}
            size = (stage.image_size, stage.image_size)
            function = functools.partial(generate, task=self, number=number, size=size, sampling=sampling)
            made[f"stage {number}"] = (group(number), function, prompt)
        return made

    @property
    def cond_image_channels(self) -> int:
        """Of the pictures to condition on; 0: there are none."""
        return max((network.cond_images_channels for network in self.networks), default=0)

    def loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array, *, number: int):
        """(loss, (metrics, stats)) of a stage, a mean over the batch."""
        for_draws, for_text, for_dropout = jax.random.split(key, 3)
        shape = batch["image"].shape
        stage = dataclasses.replace(self.stages[number - 1], unet=self.networks[number - 1])
        draws = imagen_stage.draw(stage, for_draws, shape, self.cond_drop_prob, lowres=number > 1)
        own = params[group(number)]
        bind = imagen_stage.bound(stage.unet, own["unet"], self.embed(own, frozen, batch, for_text), dropout=for_dropout)
        before = self.stages[number - 2].image_size if number > 1 else None
        image, cond = to_float(batch["image"], _RANGE), _cond(stage.unet, batch)
        loss = jnp.mean(imagen_stage.losses(stage, bind, image, draws, before, cond))
        metrics = {f"loss/{group(number)}": loss}
        if number == self._trained[0]:
            metrics["loss"] = loss
        updates = {**stats["updates"], group(number): stats["updates"][group(number)] + 1}
        return loss, (metrics, {**stats, "updates": updates})

    def after_update(self, params, stats: Stats, batch: Batch, key: Key, step: Array):
        """Nothing changes without a gradient."""
        return params, stats

    def embed(self, params: Params, frozen: Any, batch: Batch, key: Key | None = None) -> tuple[Array, Array] | None:
        """(embeddings (B, L, D), mask (B, L)) of the batch's texts; None without texts."""
        if self.text is None:
            return None
        return captions.embed(self.text, params, frozen, batch, key), batch["text_mask"]

    def flops(self, batch_size: int) -> float:
        """Of one step, from the traced networks: 3 forward passes; text encoders are not counted."""
        once = 0.0
        for number in self._trained:
            params = jax.eval_shape(functools.partial(self._init_unet, number=number), jax.random.key(0))
            once += flops_of(functools.partial(self._forward, number), sharding.unbox(params))
        return 3 * batch_size * once

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
        """Inputs of a stage's network for one picture."""
        stage, network = self.stages[number - 1], self.networks[number - 1]
        side = stage.crop_size or stage.image_size
        inputs = {"x_BHWC": jnp.zeros((1, side, side, self.channels)), "condition_B": jnp.zeros((1,))}
        if self.text is not None:
            inputs["text_embeds_BLD"] = jnp.zeros((1, self.text.max_length, self.text.dim))
        if number > 1:
            inputs |= {"lowres_BHWC": inputs["x_BHWC"], "lowres_condition_B": jnp.zeros((1,))}
        if network.cond_images_channels:
            inputs["cond_image_BHWC"] = jnp.zeros((1, side, side, network.cond_images_channels))
        return inputs


def group(number: int) -> str:
    """Name of the parameters of the stage with this number, from 1."""
    return f"stage_{number}"


def _cond(unet, batch):
    return to_float(batch["cond_image"], (0.0, 1.0)) if unet.cond_images_channels else None


@functools.partial(jax.jit, static_argnames=("task", "number", "size", "sampling"))
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: ImagenTask,
    number: int,
    size: tuple[int, int],
    sampling: Sampling,
    guidance: Array | float = 1.0,
    lowres_level: Array | float | None = None,
) -> Array:
    """Pictures (B, *size, C) in [-1, 1] of one stage; one compiled program per task, stage, sampling and shapes.

    Args:
      params: of the stage's group. frozen: as in training.
      prompt: "text" or "text_embeds", and "text_mask" where there are texts; the same with the prefix "negative_";
        "small": pictures in [-1, 1] of the stage before; "init": pictures in [-1, 1] of any size, "keep": bool
        (B, H, W), True where they are known; "cond_image": uint8 of any size.
      keys_B: one key per picture. guidance: one scale, or one per picture.
      lowres_level: of the noise on "small"; None: the stage's own.
    """
    stage = dataclasses.replace(task.stages[number - 1], unet=task.networks[number - 1])
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
    text = task.embed(params, frozen, prompt)
    negative = {name[len("negative_") :]: value for name, value in prompt.items() if name.startswith("negative_")}
    against = task.embed(params, frozen, negative) if negative else None
    bind = imagen_stage.bound(stage.unet, params["unet"], text, against)
    shape = (keys_B.shape[0], *size, task.channels)
    small = None
    if "small" in prompt:
        for_small = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(keys_B)
        small = prompt["small"], gaussian(for_small)(0, jnp.zeros(shape)), lowres_level
    more: dict[str, Any] = {"cond_image_BHWC": _cond(stage.unet, prompt)}
    if "init" in prompt:
        more["init_BHWC"] = imagen_stage.resize(prompt["init"], size, stage.resize)
    if "keep" in prompt:
        more["keep_BHW"] = imagen_stage.resize(prompt["keep"][..., None].astype(jnp.float32), size, "nearest")[..., 0] > 0
    images = imagen_stage.run(stage, bind, sampling, shape, gaussian(keys_B), guidance, small=small, **more)
    return sharding.constrain(images, None, None, None, None)  # whole in every process
