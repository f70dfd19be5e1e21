"""Networks of DALL-E 2 as dalle2-pytorch 1.15.6 saves them together."""

from __future__ import annotations

import dataclasses
from typing import Any

from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.models.decoder_cascade import DecoderUnets
from t2i_jax.models.diffusion_prior import DiffusionPriorNetwork


@dataclasses.dataclass(frozen=True)
class PriorAndClip:
    """A prior's network, its diffusion, and the CLIP that was saved along with them: a
    `DiffusionPrior` of dalle2-pytorch.

    Their parameters are {"network": parameters}, with "clip" where there is one.

    Attributes:
      network: of the prior. noise: of its diffusion; weights do not tell what it predicts.
      clip: a `CLIP` of x-clip; None: it was trained on embeddings.
    """

    network: DiffusionPriorNetwork
    noise: DiscreteDdpm
    clip: Any = None


@dataclasses.dataclass(frozen=True)
class PriorAndDecoder:
    """A prior and a decoder, each with the CLIP that both share: a `DALLE2` of dalle2-pytorch.

    Their parameters are {"prior": those of `PriorAndClip`, "decoder": those of `DecoderUnets`}.
    """

    prior: PriorAndClip
    decoder: DecoderUnets
