"""What the toy can be told when it samples."""

import dataclasses

from t2i_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ToyOptions:
    """How the toy samples.

    Attributes:
      guidance: how far the caption moves the colour away from the mean; 0 is the mean colour, 1
        what was trained.
      noise: standard deviation of the noise added to every pixel, from 0.
    """

    guidance: float = 1.0
    noise: float = 0.0

    def __post_init__(self):
        if self.noise < 0:
            raise UserError(f"noise={self.noise} is below 0; give 0 for none.")
