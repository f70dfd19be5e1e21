"""DALL-E 2 as a task: it trains nothing of its own and joins what its parts have learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.systems.base import Given, Part, SystemTask
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.dalle2 import stored
from t2i_jax.systems.dalle2.options import DALLE2Options
from t2i_jax.systems.dalle2.system import DALLE2System
from t2i_jax.systems.decoder.task import DecoderTask
from t2i_jax.systems.joining import is_other, refuse_unread, same_weights
from t2i_jax.systems.prior.task import PriorTask
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.types import Objective, Stats


@dataclasses.dataclass(frozen=True)
class DALLE2Task(SystemTask):
    """Joins a CLIP, a prior and a decoder.

        Recipe(task=DALLE2Task(), data=..., parts={"clip": ..., "prior": ..., "decoder": ...})

    Its parts are trained in this order: "clip", "tokenizer" (for a decoder on latents), "prior",
    "decoder". The latter two inherit the others.

    Attributes:
      clip, tokenizer, prior: the networks of the parts, which come with them.
      decoder: the decoder's task, which comes with it; None: not known.
    """

    clip: Any = None
    tokenizer: Any = None
    prior: Any = None
    decoder: Any = None

    parts: ClassVar[Mapping[str, Part]] = {
        "clip": Part(ClipTask, "clip"),
        "tokenizer": Part(TokenizerTask, "tokenizer"),
        "prior": Part(PriorTask, "prior"),
        "decoder": Part(DecoderTask, "decoder"),
    }
    options: ClassVar[type] = DALLE2Options
    objectives: ClassVar[tuple[Objective, ...]] = ()
    ema_groups: ClassVar[tuple[str, ...]] = ()

    @property
    def text_encoder(self) -> Any:
        """The encoder from captions to what CLIP reads; None where CLIP is not known."""
        return None if self.clip is None else self.clip.captions

    @property
    def image_size(self) -> int | None:
        """Side of the images in pixels; None where the decoder is not known."""
        return None if self.decoder is None else self.decoder.image_size

    def made_size(self, options: DALLE2Options, trained_at: int | None = None) -> int | None:
        """That of the decoder; `trained_at` where it is not known."""
        known = self.decoder
        return trained_at if known is None else known.made_size(options, trained_at)

    @property
    def channels(self) -> int:
        """Channels of the images; 3 where the decoder is not known."""
        return 3 if self.decoder is None else self.decoder.channels

    @property
    def inputs(self) -> tuple[str, ...]:
        """Negative prompts; images to vary, to mix and to change by captions; images to inpaint or
        change pixel by pixel.
        """
        return "negative_prompts", "images", "other_images", "instead_of", "init_images", "mask"

    @property
    def samples(self) -> tuple[str, ...]:
        """Captions."""
        return ("caption",)

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The images; nothing where the decoder is not known."""
        if self.image_size is None:
            return {}
        shape = (batch_size, self.image_size, self.image_size, self.channels)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def with_parts(self, parts: Mapping[str, Given]) -> DALLE2Task:
        """The task with the networks of its parts.

        Raises:
          UserError: no prior or no decoder.
        """
        for name, kind in (("clip", "Clip"), ("prior", "Prior"), ("decoder", "Decoder")):
            if name not in parts:
                raise UserError(
                    f"parts.{name} is not given, and DALL-E 2 joins a CLIP, a prior and a decoder; "
                    f"give the recipe or the run of a {kind}Task."
                )
        return super().with_parts(parts)

    def check_parts(self, parts: Mapping[str, Given]) -> None:
        """Refuses a prior and a decoder that do not fit each other, or that were trained with
        another CLIP, and a tokenizer that the decoder does not read.
        """
        clip, prior, decoder = parts["clip"], parts["prior"], parts["decoder"]
        _check(prior.task, decoder.task)
        for name in ("prior", "decoder"):
            own = parts[name].parts.get("clip")
            if own is not None and is_other(own, clip):
                raise _of_another_clip(name)
        stored.check(clip.network, clip.fingerprint, prior, decoder)
        refuse_unread("tokenizer", ("decoder",), parts)

    def adapted(
        self, options: DALLE2Options, defaults: DALLE2Options, given: Collection[str]
    ) -> DALLE2Options:
        """The options; with another sampler than the recipe's, steps that are not given are that
        sampler's own.
        """
        for prefix in ("", "prior_"):
            sampler, steps = f"{prefix}sampler", f"{prefix}steps"
            if getattr(options, sampler) != getattr(defaults, sampler) and steps not in given:
                options = dataclasses.replace(options, **{steps: None})
        return options

    def system(
        self, params, stats: Stats, parts: Mapping[str, Given], frozen, text_tokenizer
    ) -> DALLE2System:
        """The trained prior and decoder.

        Raises:
          UserError: parts that do not fit each other.
        """
        prior, decoder = parts["prior"].system, parts["decoder"].system
        clip = parts["clip"].system if "clip" in parts else prior.clip
        if clip is None:
            raise UserError(
                "parts.clip is not given, and the prior was trained on stored embeddings; give the "
                "run of the ClipTask that made them."
            )
        _check(prior.task, decoder.task)
        for name, part in (("prior", prior), ("decoder", decoder)):
            own = (part.frozen or {}).get("clip", {}).get("clip")
            if own is not None and not same_weights(own, clip.weights["clip"]):
                raise _of_another_clip(name)
        made_by = parts["clip"].fingerprint if "clip" in parts else ""
        joined = stored.joined(clip, made_by, parts["prior"], parts["decoder"])
        prior, decoder = joined.prior, joined.decoder
        task = dataclasses.replace(
            self,
            clip=clip.task.network,
            tokenizer=decoder.task.tokenizer,
            prior=prior.task.network,
            decoder=decoder.task,
        )
        return DALLE2System(task, {}, clip, prior, decoder, joined.unread)


def _check(prior, decoder):
    """Refuses tasks that do not fit each other."""
    if not decoder.by_image:
        raise UserError(
            "parts.decoder makes images without image embeddings, and DALL-E 2's makes them of "
            "the prior's; give a decoder with cond_on_image_embeds=True."
        )
    if decoder.embed_width != prior.network.width:
        raise UserError(
            f"parts.decoder takes embeddings {decoder.embed_width} wide, and parts.prior "
            f"makes some {prior.network.width} wide; give two of one CLIP."
        )


def _of_another_clip(name):
    return UserError(
        f"parts.{name} was trained with another CLIP than parts.clip; give parts of one CLIP."
    )
