"""The sampling options of Parti."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from t2i_jax.decoding.autoregressive import Sampling
from t2i_jax.errors import UserError
from t2i_jax.systems import calls


@dataclasses.dataclass(frozen=True)
class PartiOptions:
    """The sampling options of Parti.

    Attributes:
      guidance: scale of classifier-free guidance; 1 is none. The paper uses small values,
        parti-pytorch 3.
      temperature: below 1 is safer, above 1 more varied; 0 always takes the likeliest token.
      top_k: sample among the k likeliest tokens only; a float in (0, 1) is a fraction of the
        codebook. None: all.
      top_p: sample among the likeliest tokens that together hold this probability. None: all.
      keep_rows: the share, from the top, that is kept of an image to inpaint where no mask says it:
        above 0, below 1.
      plausibility: with guidance, tokens are left out whose probability given the caption is below
        this share, 0 to 1, of the likeliest one's. Guidance would pick some of them, and the more
        so the better a model knows its data. None or 0: none are left out, as in parti-pytorch.
    """

    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int | float | None = None
    top_p: float | None = None
    keep_rows: float = 0.5
    plausibility: float | None = 0.1

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"keep_rows": ("init_images",)}
    idle_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"keep_rows": ("mask", "known_rows")}

    def __post_init__(self):
        calls.plain(self)
        calls.check_number("guidance", self.guidance, "try 3.0, or 1 for none")
        calls.check_number("temperature", self.temperature, "try 1.0", low=0)
        if self.plausibility is not None:
            calls.check_number(
                "plausibility", self.plausibility, "try 0.1, or 0 for none", low=0, high=1
            )
        calls.check_number("keep_rows", self.keep_rows, "try 0.5")
        if not 0 < self.keep_rows < 1:
            raise UserError(f"keep_rows={self.keep_rows} must lie between 0 and 1; try 0.5.")
        _ = self.sampling  # refuses top_k and top_p

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The options without an effect, see `calls.check_used`."""
        found = {"plausibility": "guidance=1"} if self.guidance == 1 else {}
        if self.temperature == 0:
            found |= dict.fromkeys(("top_k", "top_p"), "temperature=0")
        return found

    @property
    def sampling(self) -> Sampling:
        """The part of the options that shapes the compiled program."""
        return Sampling(guided=self.guidance != 1, top_k=self.top_k, top_p=self.top_p)
