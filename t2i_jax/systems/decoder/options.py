"""What DALL-E 2's decoder can be told when it samples."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from t2i_jax.systems.decoder.stage import COMPAT
from t2i_jax.systems.imagen.options import ImagenOptions


@dataclasses.dataclass(frozen=True)
class DecoderOptions(ImagenOptions):
    """How a decoder samples; "per stage" is one value for all stages, or a tuple with one for each.

    Attributes:
      guidance: scale of classifier-free guidance by image embedding and caption, per stage; 1 is
        none.
      sampler: per stage, "ancestral", "ddim", "heun" or "dpm_solver"; None: the stage's own.
      steps: of the sampler, per stage; None: the stage's own.
      parallel: the share, 0 to 1, that stays of the guidance's component parallel to the
        conditional prediction (APG).
      interval: (low, high) of sigma / alpha where guidance is applied, from 0; None: everywhere.
      start_at: number, from 1, of the first stage that runs; None: the first there is.
      stop_at: number of the last stage that runs; None: the last one before an untrained one.
      strength: how much init_images without a mask are changed, from above 0 to 1.
      resample: how often each step of inpainting is made (RePaint).
      lowres_level: of the noise on each smaller image, from 0 to 1; None: the stage's own.
      image_sizes: side or (height, width) per stage; None: those of training.
      compat: "dalle2-pytorch": the levels of "ddim", which end a little before the clean image, and
        the noise of inpainting as that package has them; None: ours.
    """

    guidance: float | tuple[float, ...] = 2.0

    compats: ClassVar[tuple[str, ...]] = (COMPAT,)
