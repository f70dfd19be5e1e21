"""Enlarging of the images of one run by the system of another."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Upscaler:
    """A system with `upscale`, and what it is given.

    Attributes:
      system: what enlarges. options: how it samples, as its recipe says.
      prompts: one per caption, as the system takes them; None: none.
      seed, batch_size: as of the images that it enlarges.
    """

    system: Any
    options: Any
    prompts: Any
    seed: int
    batch_size: int

    def __call__(self, images: np.ndarray, count: int) -> np.ndarray:
        """The enlarged images, `count` of which stand together for each caption. What there is to
        say of captions and options has been said when they were checked; what is cut off the
        images, which are here only now, is told.
        """
        from t2i_jax.systems import notices, prompting

        prompts = prompting.repeated(self.prompts, count)
        with notices.quiet(images=False):
            return self.system.upscale(
                images, prompts=prompts, options=self.options, seed=self.seed,
                batch_size=self.batch_size, progress=True,
            )  # fmt: skip


def upscaler(
    run: pathlib.Path,
    system: Any,
    captions: Sequence[str],
    embed: Callable[[pathlib.Path, Any], Any] | None,
    seed: int,
    batch_size: int,
) -> Upscaler:
    """The upscaler of a run, once it is sure that it takes what it will be given.

    Args:
      system: of the run. captions: of the images; none: it enlarges without.
      embed: makes embeddings of the captions for a run and its text encoder; None: nothing does,
        and a run with stored embeddings enlarges without captions.

    Raises:
      UserError: captions or options that do not fit, or no captions to embed, before any image is
        made.
    """
    from t2i_jax import runs
    from t2i_jax.systems.notices import tell

    if embed is not None and not captions:
        raise UserError(
            "captions are missing, of which --t5 makes embeddings for --upscale; name some after "
            "RUN, or leave out --t5."
        )
    encoder, prompts = system.task.text_encoder, None
    if captions and stores_text(system):
        prompts = None if embed is None else embed(run, encoder)
        if embed is None:
            tell(
                f"upscale={str(run)!r} reads stored text embeddings and enlarges without captions; "
                "--t5 names the T5 that made them"
            )
    elif captions and encoder is not None:
        prompts = list(captions)
    options = runs.load_run_recipe(run).evaluation.options
    system.check_upscale(prompts, options, batch_size=batch_size)
    return Upscaler(system, options, prompts, seed, batch_size)


def stores_text(system: Any) -> bool:
    """Whether a system reads embeddings of captions that are stored."""
    from t2i_jax.text.stored import is_stored

    return is_stored(system.task.text_encoder)
