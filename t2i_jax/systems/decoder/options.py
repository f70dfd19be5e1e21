"""The sampling options of DALL-E 2's decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from t2i_jax.systems.cascade.options import CascadeOptions
from t2i_jax.systems.decoder.stage import COMPAT


@dataclasses.dataclass(frozen=True)
class DecoderOptions(CascadeOptions):
    """The sampling options of a decoder; all fields but these are those of `CascadeOptions`.

    Attributes:
      guidance: scale of classifier-free guidance by image embedding and caption, per stage; 1 is
        none.
      compat: "dalle2-pytorch": the levels of "ddim", which end a little before the clean image, and
        the noise of inpainting as that package has them; None: ours.
    """

    guidance: float | tuple[float, ...] = 2.0

    compats: ClassVar[tuple[str, ...]] = (COMPAT,)
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **CascadeOptions.needs,
        "eta": ("init_images", "images"),
    }
