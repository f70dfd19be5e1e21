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
from t2i_jax.systems.cascade import stage as stages
from t2i_jax.systems.cascade.stage import Stage, group
from t2i_jax.systems.cascade.task import CascadeTask, check_stages, idle_in_stages
from t2i_jax.systems.imagen import sampling
from t2i_jax.systems.imagen.options import ImagenOptions
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.text_to_image import samples_of
from t2i_jax.types import Array, Batch, Key, Metrics, Params, SamplingProgram, Stats


@dataclasses.dataclass(frozen=True)
class ImagenTask(CascadeTask):
    """Trains the stages of a cascade, each on its own: images from noise, then larger images from
    smaller ones.

        ImagenTask(
            stages=(Stage(Unet(dim=64), image_size=32), Stage(Unet(dim=32, memory_efficient=True),
            image_size=64)), text=T5Text.from_directory("google/t5-v1_1-base"),
        )

    Every step makes one update of each stage in `train_stages`, on the same images. Groups:
    "stage_1", "stage_2", ..., each {"unet": params} and, for a jointly trained text encoder,
    "text": every stage has one of its own. `stats` counts the updates of each. `frozen` of the
    step: "text", the weights of a frozen encoder.

    Attributes:
      stages: from small to large.
      text: `LearnedText`, `T5Text`, `ClipText`, `ClassLabels` or `StoredText` (the batch holds
        embeddings); None: images without captions.
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

    def __post_init__(self):
        if isinstance(self.stages, Stage):
            object.__setattr__(self, "stages", (self.stages,))
        check_stages(self.stages, self.train_stages, "Stage")
        if not 0 <= self.cond_drop_prob <= 1:
            raise UserError(f"cond_drop_prob={self.cond_drop_prob} is outside [0, 1]; try 0.1.")

    @functools.cached_property
    def networks(self) -> tuple[Any, ...]:
        """The U-Nets as they stand in the cascade."""
        return tuple(
            stage.unet.clone(parent=None, **self._set_of(i)) if stage.trains else stage.unet
            for i, stage in enumerate(self.stages)
        )

    def _set_of(self, i):
        """The fields of a U-Net that the task sets."""
        fields = {
            "lowres_cond": i > 0,
            "channels": self.channels,
            "cond_on_text": self.text is not None,
        }
        return fields if self.text is None else {**fields, "text_embed_dim": self.text.dim}

    @property
    def text_lengths(self) -> Mapping[str, int]:
        """`max_text_len` of each stage's U-Net."""
        if self.text is None:
            return {}
        stages = enumerate(self.stages, 1)
        return {f"stage {n}": stage.unet.max_text_len for n, stage in stages if stage.trains}

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = idle_in_stages(self.stages, self._set_of)
        return found if self.text is not None else {**found, "cond_drop_prob": "text=None"}

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
        """Negative prompts with texts; images to inpaint or change.

        Images to condition on where the U-Nets take some; images to start from at a later stage.
        """
        names = ("negative_prompts",) if self.text is not None else ()
        return (
            *names,
            "init_images",
            "mask",
            *(("cond_images",) if self.cond_image_channels else ()),
            *(("start_images",) if len(self.stages) > 1 else ()),
        )

    @property
    def samples(self) -> tuple[str, ...]:
        """Captions, with their embeddings where these are stored; images to condition on."""
        return samples_of(self.text, *(("cond_image",) if self.cond_image_channels else ()))

    def system(
        self, params, stats: Stats, parts, frozen: Mapping[str, Any], text_tokenizer: Any
    ) -> ImagenSystem:
        """The trained cascade."""
        return ImagenSystem(self, params, jax.device_get(stats["updates"]), frozen, text_tokenizer)

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """A program per stage."""

        def prompt(number):
            found = dict(captions.spec(self.text, batch_size))
            if self.networks[number - 1].cond_images_channels:
                side = self.stages[number - 1].image_size
                shape = (batch_size, side, side, self.cond_image_channels)
                found["cond_image"] = jax.ShapeDtypeStruct(shape, jnp.uint8)
            return found

        return self._programs(sampling.generate, prompt, batch_size, guided=self.text is not None)

    @property
    def cond_image_channels(self) -> int:
        """The channels of the images to condition on; 0: there are none."""
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
        losses_B = stages.losses(stage, bind, image, draws, previous, cond)
        return self._told(losses_B, stats, number)

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The metrics of `CascadeTask.validate`, with all captions."""
        told = dataclasses.replace(self, cond_drop_prob=0.0, text=captions.quiet(self.text))
        return super(ImagenTask, told).validate(params, stats, frozen, batch, key, step)

    def embed(
        self, params: Params, frozen: Any, batch: Batch, key: Key | None = None
    ) -> tuple[Array, Array] | None:
        """(embeddings (B, L, D), mask (B, L)) of the batch's texts; None without texts."""
        if self.text is None:
            return None
        return captions.embed(self.text, params, frozen, batch, key), batch["text_mask"]

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks: 3 forward passes.

        A frozen text encoder runs one forward pass.
        """
        once = frozen = 0.0
        texts = captions.spec(self.text, 1)
        for number in self._trained:
            once += self._unet_flops(number)
            if self.text is not None and self.text.trainable:  # every stage has one of its own
                encoder = sharding.unbox(jax.eval_shape(self.text.init, jax.random.key(0)))
                once += flops_of(self.text.embed, encoder, *texts.values())
        if self.text is not None and (encoder := self.text.frozen_shapes()):
            frozen = flops_of(self.text.embed, encoder["text"], *texts.values())
        return batch_size * (3 * once + frozen)

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
