"""The sampling options of Imagen."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from t2i_jax.systems.cascade.options import CascadeOptions

COMPAT = "imagen-pytorch"


@dataclasses.dataclass(frozen=True)
class ImagenOptions(CascadeOptions):
    """The sampling options of Imagen; all fields but these are those of `CascadeOptions`.

    Attributes:
      parallel: the share, 0 to 1, that stays of the guidance's component parallel to the
        conditional prediction (APG); imagen-pytorch 2.1.0 has 0.
      compat: "imagen-pytorch": noise levels of inpainted and changed images, and the resizing of
        a mask, as that package has them (with `Edm` those of its ElucidatedImagen, whose solver is
        "heun"); None: ours. Images to change are given to the first stage alone in either case;
        the package adds them at every U-Net.
    """

    compats: ClassVar[tuple[str, ...]] = (COMPAT,)
