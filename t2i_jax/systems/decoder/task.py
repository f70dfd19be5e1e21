"""Training DALL-E 2's decoder: a `Task`, a group per stage; images are made of their own CLIP
embeddings, and of captions.
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
from t2i_jax.systems.base import Given, Part
from t2i_jax.systems.cascade import inputs
from t2i_jax.systems.cascade.stage import group
from t2i_jax.systems.cascade.task import CascadeTask, idle_in_stages
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.decoder import checks, latents, sampling
from t2i_jax.systems.decoder import stage as stages
from t2i_jax.systems.decoder.options import DecoderOptions
from t2i_jax.systems.decoder.stage import Conditions, DecoderStage
from t2i_jax.systems.decoder.system import DecoderSystem
from t2i_jax.systems.text_to_image import samples_of
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.types import Array, Batch, Key, Metrics, Params, SamplingProgram, Stats


@dataclasses.dataclass(frozen=True)
class DecoderTask(CascadeTask):
    """Trains the stages of a decoder, each on its own: images from their embeddings, then larger
    images from smaller ones.

        unet = DecoderUnet(dim=128, cond_on_image_embeds=True)
        DecoderTask(stages=(DecoderStage(unet, image_size=64),))  # and the part "clip"

    Every step makes one update of each stage in `train_stages`, on the same images. Groups:
    "stage_1", "stage_2", ..., each {"unet": params} and, where captions are read by a jointly
    trained text encoder, "text": every stage has one of its own. `stats` counts the updates of
    each. `frozen` of the step: "clip" and "tokenizer", the weights of the parts, and "text" of a
    frozen encoder.

    The U-Net of a stage says which conditions it has (`cond_on_image_embeds`,
    `cond_on_text_encodings`); a decoder whose U-Nets have none is unconditional.

    Attributes:
      stages: from small to large.
      clip: the network that embeds images and captions, which comes with the part "clip"; None:
        embeddings are stored with the data, by `t2i data encode-clip`.
      tokenizer: the image tokenizer of stages on latents, which comes with the part "tokenizer".
      image_embed_dim: width of stored embeddings; None: of `clip`.
      text: `LearnedText`, which is trained with the U-Nets as in the paper (Ramesh et al. 2022,
        section 2.1), `T5Text` or `StoredText`, whose embeddings the U-Nets see in place of CLIP's
        encodings of a caption; None: CLIP's.
      image_cond_drop_prob, text_cond_drop_prob: share of the image embeddings and of the captions
        that are dropped, for classifier-free guidance.
      channels: of the images.
      train_stages: numbers, from 1, of those that are trained; None: all. A run may change it when
        it resumes.
    """

    stages: tuple[DecoderStage, ...]
    clip: Any = None
    tokenizer: Any = None
    image_embed_dim: int | None = None
    text: Any = None
    image_cond_drop_prob: float = 0.1
    text_cond_drop_prob: float = 0.5
    channels: int = 3
    train_stages: tuple[int, ...] | None = None

    parts: ClassVar[Mapping[str, Part]] = {
        "clip": Part(ClipTask, "clip"),
        "tokenizer": Part(TokenizerTask, "tokenizer"),
    }
    options: ClassVar[type] = DecoderOptions
    cond_image_channels: ClassVar[int] = 0  # of images to condition on, which a decoder has not

    def __post_init__(self):
        if isinstance(self.stages, DecoderStage):
            object.__setattr__(self, "stages", (self.stages,))
        checks.check(self)

    @functools.cached_property
    def networks(self) -> tuple[Any, ...]:
        """The U-Nets as they stand in the cascade.

        Raises:
          UserError: an embedding, encoding or tokenizer that they need and that is not known.
        """
        made = []
        for i, stage in enumerate(self.stages):
            unet = stage.unet
            if not stage.trains:
                made.append(unet)
                continue
            channels = self._made_channels(stage)
            fields = {
                **self._set_of(i),
                "channels": channels,
                "channels_out": channels * (1 if stage.learned_variance is None else 2),
            }
            if unet.cond_on_image_embeds:
                fields["image_embed_dim"] = self.embed_width
            if unet.cond_on_text_encodings:
                fields["text_embed_dim"] = self.text_width
            made.append(unet.clone(parent=None, **fields))
        return tuple(made)

    def _set_of(self, i):
        """The fields of a U-Net that the task sets and that need no part to be known."""
        stage = self.stages[i]
        fields = {"lowres_cond": i > 0, "lowres_noise_cond": i > 0 and stage.lowres.noise}
        return fields if stage.latent else {**fields, "channels": self.channels}

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = idle_in_stages(self.stages, self._set_of)
        if not self.by_image:
            names = ("image_cond_drop_prob", "image_embed_dim")
            found |= dict.fromkeys(names, "U-Nets that have cond_on_image_embeds=False")
        if not self.by_text:
            names = ("text_cond_drop_prob", "text")
            found |= dict.fromkeys(names, "U-Nets that have cond_on_text_encodings=False")
        return found

    @property
    def unread_parts(self) -> Mapping[str, str]:
        """A tokenizer without a stage on latents, and CLIP without a stage that it has something
        for.
        """
        found = {}
        if not any(stage.latent for stage in self.stages):
            found["tokenizer"] = "stages that have latent=False"
        if not (self.by_image or self.by_text):
            found["clip"] = "U-Nets that have no conditions"
        return found

    @property
    def embed_width(self) -> int:
        """Width of the image embeddings."""
        return checks.embed_width(self)

    @property
    def text_width(self) -> int:
        """Width of the encodings of captions."""
        return checks.text_width(self)

    @property
    def by_image(self) -> bool:
        """Whether any stage is conditioned on image embeddings."""
        return any(stage.unet.cond_on_image_embeds for stage in self.stages)

    @property
    def by_text(self) -> bool:
        """Whether any stage is conditioned on captions."""
        return any(stage.unet.cond_on_text_encodings for stage in self.stages)

    @property
    def idle_parts(self) -> tuple[str, ...]:
        """The CLIP, the tokenizer and a text encoder, where no stage that is trained reads them."""
        trained = [self.stages[number - 1] for number in self._trained]
        read = {
            "clip": any(map(self._reads_clip, self._trained)),
            "tokenizer": any(stage.latent for stage in trained),
            "text": any(stage.unet.cond_on_text_encodings for stage in trained),
        }
        return tuple(name for name, is_read in read.items() if not is_read)

    @property
    def text_encoder(self) -> Any:
        """The encoder from captions to what a batch holds of them; None without captions."""
        if self.text is not None:
            return self.text
        return None if self.clip is None else self.clip.captions

    @property
    def trains_vocabulary(self) -> bool:
        """Whether the vocabulary of an encoder other than CLIP is trained: CLIP has its own."""
        return self.text is not None and super().trains_vocabulary

    @property
    def text_lengths(self) -> Mapping[str, int]:
        """`max_text_len` of each U-Net that reads captions."""
        return {
            f"stage {number}": stage.unet.max_text_len
            for number, stage in enumerate(self.stages, 1)
            if stage.trains and stage.unet.cond_on_text_encodings
        }

    def learns_text(self, number: int) -> bool:
        """Whether a stage trains a text encoder of its own."""
        reads = self.stages[number - 1].unet.cond_on_text_encodings
        return reads and self.text is not None and self.text.trainable

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) by stage, and the counts of updates."""
        params = {}
        for number in self._trainable:
            own = jax.random.fold_in(key, number)
            params[group(number)] = {"unet": self._init_unet(own, number)}
            if self.learns_text(number):
                params[group(number)]["text"] = self.text.init(jax.random.fold_in(own, 1))
        return params, {"updates": {group(number): jnp.int32(0) for number in self._trainable}}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images at the size of the last stage; what they are conditioned on."""
        side = self.image_size
        spec = {"image": jax.ShapeDtypeStruct((batch_size, side, side, self.channels), jnp.uint8)}
        if self.by_text:
            spec |= captions.spec(self.text_encoder, batch_size)
        if self.by_image and self.clip is None:
            shape = (batch_size, self.embed_width)
            spec["image_embeds"] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return spec

    @property
    def inputs(self) -> tuple[str, ...]:
        """Negative prompts with captions; images to vary where there is a CLIP to embed them;
        images to inpaint or change, and to start from at a later stage.
        """
        names = ("negative_prompts",) if self.by_text else ()
        shown = ("images",) if self.by_image and self.clip is not None else ()
        start = ("start_images",) if len(self.stages) > 1 else ()
        return (*names, *shown, "init_images", "mask", *start)

    @property
    def samples(self) -> tuple[str, ...]:
        """Images, or their stored embeddings, and their captions."""
        if not (self.by_image or self.by_text):
            return ()
        own = ("image" if self.clip is not None else "image_embeds",) if self.by_image else ()
        return samples_of(self.text_encoder, *own)

    def columns(self, parts: Mapping[str, Given]) -> Mapping[str, Mapping[str, Any]]:
        """Stored embeddings of images, of this width, where there is no CLIP; those of captions."""
        stored = dict(super().columns(parts)) if self.by_text else {}
        if self.by_image and self.clip is None:
            stored["clip"] = {"dim": self.embed_width}
        return stored

    def prepare_text(self, folder, captions, parts: Mapping[str, Given]) -> None:
        """The vocabulary of CLIP, or that of another encoder."""
        if self.text is None and "clip" in parts:
            parts["clip"].system.save_vocabulary(folder)
        else:
            super().prepare_text(folder, captions, parts)

    def with_parts(self, parts: Mapping[str, Given]) -> DecoderTask:
        """The task with the networks of its parts.

        Raises:
          UserError: a part that is missing, or of another width than the U-Nets.
        """
        made = super().with_parts(parts)
        _ = made.networks
        return made

    def system(
        self, params, stats: Stats, parts, frozen: Mapping[str, Any], text_tokenizer: Any
    ) -> DecoderSystem:
        """The trained decoder."""
        clip = parts["clip"].system if "clip" in parts else None
        if text_tokenizer is None and self.text is None and clip is not None:
            text_tokenizer = clip.text_tokenizer  # what was converted has the vocabulary there
        updates = jax.device_get(stats["updates"])
        return DecoderSystem(self, params, updates, frozen, text_tokenizer, clip=clip)

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """A program per stage."""

        def of(dtype, *shape):
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

        prompt = {}
        if self.by_image:
            prompt["image_embeds"] = of(jnp.float32, self.embed_width)
        if self.by_text and self.text_encoder.trainable:
            prompt |= self.text_encoder.spec(batch_size)
        elif self.by_text:
            length = self.text_encoder.max_length
            prompt["encodings"] = of(jnp.float32, length, self.text_width)
            prompt["encodings_mask"] = of(jnp.bool_, length)
        return self._programs(sampling.generate, lambda _: prompt, batch_size, guided=bool(prompt))

    def stage(self, number: int) -> DecoderStage:
        """The stage with this number, from 1, with the U-Net as it stands in the cascade."""
        return dataclasses.replace(self.stages[number - 1], unet=self.networks[number - 1])

    def latents_of(self, number: int, frozen: Any):
        """(to what the stage makes of images in [-1, 1], and back) of a stage."""
        stage = self.stages[number - 1]
        if not stage.latent:
            return (lambda image: image), (lambda image: image)
        own = (self.tokenizer, frozen["tokenizer"])
        return tuple(
            functools.partial(function, *own, scale=stage.latent_scale)
            for function in (latents.encoded, latents.decoded)
        )

    def made_shape(self, number: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """(H, W, C) of what a stage makes for images of this size: pixels, or latents."""
        stage = self.stages[number - 1]
        patch = self.tokenizer.patch_size if stage.latent else 1
        return size[0] // patch, size[1] // patch, self._made_channels(stage)

    def check_size(self, number: int, size: tuple[int, int]) -> None:
        """Refuses a size of images that a stage, or the tokenizer of its latents, can't make."""
        stage = self.stages[number - 1]
        if not stage.latent or self.tokenizer is None:
            return super().check_size(number, size)
        inputs.check_size(size, self.tokenizer.patch_size * stage.unet.multiple)
        latents.check_size(self.tokenizer, "image_sizes", size)

    def conditions(
        self, params: Params, frozen: Any, batch: Batch, key: Key | None = None, *, number: int = 1
    ) -> Conditions:
        """The inputs that condition a stage, for the images of a batch.

        Args:
          params: of the stage, whose text encoder may be jointly trained. key: for its dropout.
        """
        image = text = mask = None
        unet = self.stages[number - 1].unet
        if unet.cond_on_image_embeds and self.clip is None:
            image = batch["image_embeds"].astype(jnp.float32)
        elif unet.cond_on_image_embeds:
            pixels = to_float(batch["image"], SIGNED)
            image = self.clip.embed_image(sampling.clip_weights(frozen), pixels)
        if unet.cond_on_text_encodings and self.text is None:
            clip: Any = self.clip
            own = (sampling.clip_weights(frozen), batch["text"], batch["text_mask"])
            _, text, mask = jax.lax.stop_gradient(clip.embed_text(*own))
        elif unet.cond_on_text_encodings:
            text = captions.embed(self.text, params, frozen, batch, key)
            mask = batch["text_mask"]
        return Conditions(jax.lax.stop_gradient(image), text, mask)

    def loss(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array, *, number: int
    ):
        """(loss, (metrics, stats)) of a stage, a mean over the batch."""
        stage, rows = self.stage(number), batch["image"].shape[0]
        side = stage.crop_size or stage.image_size
        shape = self.made_shape(number, (side, side))
        drops = (self.image_cond_drop_prob, self.text_cond_drop_prob)
        draws = stages.draw(stage, key, rows, shape, self.channels, drops, lowres=number > 1)
        for_text = jax.random.fold_in(key, 1)
        losses_B = self.losses(params, frozen, batch, draws, for_text, number=number)
        return self._told(losses_B, stats, number)

    def losses(
        self,
        params,
        frozen: Any,
        batch: Batch,
        draws: stages.DecoderDraws,
        for_text: Key | None = None,
        *,
        number: int,
    ) -> Array:
        """The loss (B,) of each row of a batch at a stage, with these random numbers.

        `for_text`: for the dropout of a jointly trained text encoder.
        """
        stage = self.stage(number)
        told = self.conditions(params[group(number)], frozen, batch, for_text, number=number)
        told = told._replace(
            keep_image_B=None if told.image_BD is None else draws.keep_image_B,
            keep_text_B=None if told.text_BLE is None else draws.keep_text_B,
        )
        bind = stages.bound(stage.unet, params[group(number)]["unet"], told)
        previous = self.stages[number - 2].image_size if number > 1 else None
        encode, _ = self.latents_of(number, frozen)
        image = to_float(batch["image"], SIGNED)
        return stages.losses(stage, bind, image, draws, previous, encode)

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The metrics of `CascadeTask.validate`, with all conditions."""
        drops = {"image_cond_drop_prob": 0.0, "text_cond_drop_prob": 0.0}
        told = dataclasses.replace(self, **drops, text=captions.quiet(self.text))
        return super(DecoderTask, told).validate(params, stats, frozen, batch, key, step)

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks: 3 forward passes of each stage, with its
        text encoder where that is jointly trained, and one of CLIP; those of a tokenizer are left
        out.
        """
        once, frozen = sum(map(self._unet_flops, self._trained)), 0.0
        if own := sum(map(self.learns_text, self._trained)):
            encoder = sharding.unbox(jax.eval_shape(self.text.init, jax.random.key(0)))
            once += own * flops_of(self.text.embed, encoder, *self.text.spec(1).values())
        clip: Any = self.clip
        for number in filter(self._reads_clip, self._trained):
            own = sharding.unbox(jax.eval_shape(clip.init, jax.random.key(0)))
            weights, batch = {"clip": {"clip": own}}, dict(self.batch_spec(1))
            read = functools.partial(self.conditions, {}, number=number)
            frozen = max(frozen, flops_of(read, weights, batch))
        return batch_size * (3 * once + frozen)

    def _reads_clip(self, number):
        unet = self.stages[number - 1].unet
        reads_text = unet.cond_on_text_encodings and self.text is None
        return self.clip is not None and (unet.cond_on_image_embeds or reads_text)

    def _made_channels(self, stage):
        if not stage.latent:
            return self.channels
        if self.tokenizer is None:
            raise UserError(
                "parts.tokenizer is not given, and a stage works on latents; give the recipe or "
                "the run of an image tokenizer."
            )
        return latents.width(self.tokenizer)

    def _zeros(self, number):
        """Inputs of a stage's network for one image."""
        stage, network = self.stages[number - 1], self.networks[number - 1]
        side = stage.crop_size or stage.image_size
        x = jnp.zeros((1, *self.made_shape(number, (side, side))))
        inputs = {"x_BHWC": x, "condition_B": jnp.zeros((1,))}
        if network.cond_on_image_embeds:
            inputs["image_embed_BD"] = jnp.zeros((1, self.embed_width))
        if network.cond_on_text_encodings:
            inputs["text_BLE"] = jnp.zeros((1, self.text_encoder.max_length, self.text_width))
        if network.lowres_cond:
            inputs["lowres_BHWC"] = x
        if network.lowres_noise_cond:
            inputs["lowres_condition_B"] = jnp.zeros((1,))
        return inputs
