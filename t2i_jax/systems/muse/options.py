"""The sampling options of Muse."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

from t2i_jax import config
from t2i_jax.config import fields_of
from t2i_jax.errors import UserError
from t2i_jax.systems import calls
from t2i_jax.systems.maskgit.options import MaskGitOptions, Steps


@dataclasses.dataclass(frozen=True)
class MuseOptions(MaskGitOptions):
    """The sampling options of Muse: those of `MaskGitOptions` are for its first stage, and for both
    where the second has none of its own.

    What a mask keeps of init_images is kept at both sizes. Without one, the first stage changes or
    edits them, and of the large tokens those are kept that lie over small ones that stayed the
    same. `image_size` is that of the large images.

    Attributes:
      superres_steps: passes through the network of super-resolution.
      superres_guidance: its scale of guidance; None: `guidance`.
      superres_temperature: its temperature; None: `temperature`.
      stop_at: "base": the small images; None: the large ones.
    """

    superres_steps: Steps = 8
    superres_guidance: float | None = None
    superres_temperature: float | None = None
    stop_at: str | None = None

    idle_with: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "strength": MaskGitOptions.idle_with["strength"],
        "steps": ("edit_steps",),  # the second stage has the others too, and edits nothing
        **dict.fromkeys(
            ("superres_steps", "superres_guidance", "superres_temperature"), ("stop_at",)
        ),
    }

    def __post_init__(self):
        super().__post_init__()
        remedy = "try 1.0, or None for that of the first stage"
        if self.superres_guidance is not None:
            calls.check_number("superres_guidance", self.superres_guidance, remedy)
        if self.superres_temperature is not None:
            calls.check_number("superres_temperature", self.superres_temperature, remedy, low=0)
        if self.superres_steps is None:
            object.__setattr__(self, "superres_steps", 8)
        calls.check_count("superres_steps", self.superres_steps, most=10_000)
        if self.stop_at is not None:
            config.one_of("stop_at", self.stop_at, ("base",))

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The options without an effect in either stage, see `calls.check_used`."""
        found = self.base.idle_fields
        if self.stop_at == "base":
            return found
        both = self.superres.idle_fields
        return {name: why for name, why in found.items() if name in both}

    @property
    def base(self) -> MaskGitOptions:
        """The options of the first stage, whose image_size is still that of the large images."""
        return MaskGitOptions(**{name: getattr(self, name) for name in fields_of(MaskGitOptions)})

    @property
    def superres(self) -> MaskGitOptions:
        """The options of the second stage."""
        own = {"steps": self.superres_steps, "edit_steps": None}
        for name in ("guidance", "temperature"):
            value = getattr(self, f"superres_{name}")
            own |= {} if value is None else {name: value}
        return dataclasses.replace(self.base, **own)


@contextlib.contextmanager
def told_of_superres(options: MuseOptions) -> Iterator[None]:
    """Names an option that the second stage has of its own, with which a refusal begins, as
    `MuseOptions` does.
    """
    try:
        yield
    except UserError as error:
        name = str(error).partition("=")[0]
        if getattr(options, f"superres_{name}", None) is None:
            raise
        raise UserError(f"superres_{error}") from None
