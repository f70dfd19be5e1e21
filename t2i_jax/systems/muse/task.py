"""Muse as a task: it trains nothing of its own and joins what its parts have learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.systems.base import Given, Part, SystemTask
from t2i_jax.systems.joining import refuse_unread, same_weights
from t2i_jax.systems.maskgit.task import MaskGitTask
from t2i_jax.systems.muse.options import MuseOptions
from t2i_jax.systems.muse.system import MuseSystem
from t2i_jax.systems.text_to_image import samples_of
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.types import Objective, Stats


@dataclasses.dataclass(frozen=True)
class MuseTask(SystemTask):
    """Joins a MaskGIT from captions and one that makes its images larger.

        Recipe(task=MuseTask(), data=..., parts={"tokenizer": ..., "base": ..., "superres": ...})

    Its parts are trained in this order: "tokenizer" (of the small images, and of the large ones
    too unless there is another), "superres_tokenizer", "base", "superres". The latter two inherit
    the tokenizers.

    Attributes:
      tokenizer, superres_tokenizer, base, superres: the networks of the parts, which come with
        them.
      text: the text encoder of the first stage, which comes with it; None: none, or not known.
    """

    tokenizer: Any = None
    superres_tokenizer: Any = None
    base: Any = None
    superres: Any = None
    text: Any = None

    parts: ClassVar[Mapping[str, Part]] = {
        "tokenizer": Part(TokenizerTask, "tokenizer"),
        "superres_tokenizer": Part(TokenizerTask, "superres_tokenizer"),
        "base": Part(MaskGitTask, "base"),
        "superres": Part(MaskGitTask, "superres"),
    }
    options: ClassVar[type] = MuseOptions
    objectives: ClassVar[tuple[Objective, ...]] = ()
    ema_groups: ClassVar[tuple[str, ...]] = ()

    @property
    def image_size(self) -> int | None:
        """Side of the large images in pixels; None where the parts are not known."""
        own = self.superres_tokenizer or self.tokenizer
        if own is None or self.superres is None or self.superres.fmap_size is None:
            return None
        return self.superres.fmap_size * own.patch_size

    @property
    def channels(self) -> int | None:
        """Channels of the images; None where the parts are not known."""
        own = self.superres_tokenizer or self.tokenizer
        return None if own is None else own.channels

    @property
    def inputs(self) -> tuple[str, ...]:
        """Negative prompts, and images to inpaint or change."""
        return "negative_prompts", "init_images", "mask"

    @property
    def samples(self) -> tuple[str, ...]:
        """Captions, with their embeddings where these are stored."""
        return samples_of(self.text)

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The large images; nothing where the parts are not known."""
        size = self.image_size
        if size is None:
            return {}
        shape = (batch_size, size, size, self.channels)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def with_parts(self, parts: Mapping[str, Given]) -> MuseTask:
        """The task with the networks of its parts.

        Raises:
          UserError: no first or no second stage.
        """
        for name in ("base", "superres"):
            if name not in parts:
                raise UserError(
                    f"parts.{name} is not given, and Muse joins two stages; give the recipe or "
                    "the run of a MaskGitTask."
                )
        return super().with_parts(parts)

    def check_parts(self, parts: Mapping[str, Given]) -> None:
        """Refuses stages that do not fit each other, and tokenizers that neither reads."""
        _check(parts["base"].task, parts["superres"].task)
        for name in ("tokenizer", "superres_tokenizer"):
            refuse_unread(name, ("base", "superres"), parts)

    def system(
        self, params, stats: Stats, parts: Mapping[str, Given], frozen, text_tokenizer
    ) -> MuseSystem:
        """The two trained stages.

        Raises:
          UserError: stages that do not fit each other.
        """
        base, superres = parts["base"].system, parts["superres"].system
        _check(base.task, superres.task)
        shared = same_weights(base.frozen[base.task.own_tokenizer], superres.frozen["tokenizer"])
        large = superres.task.superres_tokenizer
        task = dataclasses.replace(
            self,
            tokenizer=base.task.tokenizer,
            superres_tokenizer=large if shared or large else superres.task.tokenizer,
            base=base.task.network,
            superres=superres.task.network,
            text=base.task.text,
        )
        return MuseSystem(task, {}, base, superres, shared)


def _check(base, superres):
    """Refuses stages that do not fit each other."""
    own, small = base.tokenizers[0], superres.tokenizers[1]
    if small is None:
        raise UserError(
            "parts.superres has cond_image_size=None, and is no super-resolution; train it with "
            "the side of the small images."
        )
    if base.cond_image_size is not None or own is None:
        raise UserError(
            "parts.base makes no images from captions alone; give a run with a tokenizer and "
            "without cond_image_size."
        )
    if small.image_size != own.image_size:
        raise UserError(
            f"parts.superres enlarges images of {small.image_size} pixels, and parts.base makes "
            f"{own.image_size}; give stages that fit."
        )
    if (base.text is None) != (superres.text is None):
        reads, other = ("base", "superres") if superres.text is None else ("superres", "base")
        raise UserError(
            f"parts.{reads} reads captions, and parts.{other} was trained without (text=None); "
            "give two that do or two that do not."
        )
