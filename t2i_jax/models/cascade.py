"""The U-Nets of a diffusion cascade as one value: what imagen-pytorch saves together."""

from __future__ import annotations

import dataclasses

from t2i_jax.models.unet import NullUnet, Unet


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The U-Nets of a cascade, from small images to large ones; parameters are {"stage_1": ...,
    "stage_2": ...}.

    Attributes:
      unets: `Unet`s; the first may be a `NullUnet`.
    """

    unets: tuple[Unet | NullUnet, ...]
