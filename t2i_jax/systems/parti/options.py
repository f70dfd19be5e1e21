"""What Parti can be told when it samples."""

from __future__ import annotations

import dataclasses
import math

from t2i_jax.decoding.autoregressive import Sampling
from t2i_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PartiOptions:
    """How Parti samples.

    Attributes:
      guidance: scale of classifier-free guidance; 1 is none. The paper uses small values,
        parti-pytorch 3.
      temperature: below 1 is safer, above 1 more varied; 0 always takes the likeliest token.
      top_k: sample among the k likeliest tokens only; a float in (0, 1) is a fraction of the
        codebook. None: all.
      top_p: sample among the likeliest tokens that together hold this probability. None: all.
      keep_rows: which part of an image to complete is kept, from the top, where no mask says it:
        above 0, below 1.
    """

    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int | float | None = None
    top_p: float | None = None
    keep_rows: float = 0.5

    def __post_init__(self):
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance={self.guidance} is not finite; try 3.0.")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise UserError(
                f"temperature={self.temperature} is not a finite number from 0; try 1.0."
            )
        if not 0 < self.keep_rows < 1:
            raise UserError(
                f"keep_rows={self.keep_rows} must lie between 0 and 1, for example 0.5."
            )
        _ = self.sampling  # refuses top_k and top_p

    @property
    def sampling(self) -> Sampling:
        """What of it shapes the compiled program."""
        return Sampling(guided=self.guidance != 1, top_k=self.top_k, top_p=self.top_p)
