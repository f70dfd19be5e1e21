"""The sampling options of DALL-E 2."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from t2i_jax.config import fields_of
from t2i_jax.errors import UserError
from t2i_jax.systems import calls
from t2i_jax.systems.decoder.options import DecoderOptions
from t2i_jax.systems.prior.options import PriorOptions

_OF_PRIOR = (
    "prior_guidance", "prior_sampler", "prior_steps", "prior_num_samples", "prior_compat",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DALLE2Options(DecoderOptions):
    """The sampling options of DALL-E 2: those of `DecoderOptions` are the decoder's.

    Attributes:
      prior_guidance: scale of classifier-free guidance of the prior; 1 is none.
      prior_sampler: "ancestral", "ddim", "heun" or "dpm_solver".
      prior_steps: of that sampler; None: 64 of "ddim", 32 of "heun" and "dpm_solver", and every
        timestep there is of "ancestral".
      prior_num_samples: image embeddings that are sampled for each image; the one that is the most
        similar to the caption's embedding is taken.
      prior_compat: "dalle2-pytorch" or "dalle2-pytorch-unclipped": guidance and samplers of the
        prior as that package has them, the latter without clipping (see `PriorOptions`); None: as
        `compat`.
      blend: where two images are given, how far their embeddings are mixed: 0 is the first, 1 the
        second.
      change: how far an image is changed by the difference of two captions: 0 is not at all, 1
        replaces it; the paper has 0.25 to 0.5.
    """

    prior_guidance: float = 1.0
    prior_sampler: str = "dpm_solver"
    prior_steps: int | None = None
    prior_num_samples: int = 2
    prior_compat: str | None = None
    blend: float = 0.5
    change: float = 0.35

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **DecoderOptions.needs,
        "blend": ("other_images",),
        "change": ("instead_of",),
    }
    idle_with: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **DecoderOptions.idle_with,
        **dict.fromkeys(_OF_PRIOR, ("images", "image_embeds")),
    }

    def __post_init__(self):
        super().__post_init__()
        for name in ("blend", "change"):
            calls.check_number(name, getattr(self, name), "try 0.5", low=0, high=1)
        with told_of_prior():
            _ = self.prior  # refuses what is not known

    @property
    def decoder(self) -> DecoderOptions:
        """The options of the decoder."""
        return DecoderOptions(**{name: getattr(self, name) for name in fields_of(DecoderOptions)})

    @property
    def prior(self) -> PriorOptions:
        """The options of the prior."""
        own: dict[str, Any] = {
            name: getattr(self, f"prior_{name}")
            for name in ("guidance", "sampler", "steps", "num_samples")
        }
        compat = self.compat if self.prior_compat is None else self.prior_compat
        return PriorOptions(**own, compat=compat)


@contextlib.contextmanager
def told_of_prior() -> Iterator[None]:
    """Names an option of the prior, with which a refusal begins, as `DALLE2Options` does."""
    try:
        yield
    except UserError as error:
        raise UserError(f"prior_{error}") from None
