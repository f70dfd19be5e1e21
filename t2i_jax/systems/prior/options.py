"""The sampling options of a prior."""

from __future__ import annotations

import dataclasses

from t2i_jax.config import one_of
from t2i_jax.systems import calls

COMPAT = "dalle2-pytorch"
UNCLIPPED = "dalle2-pytorch-unclipped"
COMPATS = (COMPAT, UNCLIPPED)
SAMPLERS = ("ancestral", "ddim", "heun", "dpm_solver")
_MOST_STEPS, _MOST_SAMPLES = 100_000, 1000


@dataclasses.dataclass(frozen=True)
class PriorOptions:
    """The sampling options of a prior, which makes image embeddings.

    Attributes:
      guidance: scale of classifier-free guidance towards the caption; 1 is none.
      sampler: "ancestral", "ddim", "heun" or "dpm_solver".
      steps: of the sampler; None: 64 of "ddim", 32 of "heun" and "dpm_solver", and every timestep
        there is of "ancestral" (250 of a diffusion in continuous time).
      num_samples: embeddings that are sampled of each caption; the one that is the most similar to
        the caption's embedding is kept. 1 takes what comes.
      compat: "dalle2-pytorch": guidance starts from a prediction that sees neither the caption nor
        the noised embedding, estimates of networks that predict noise or v are clipped to
        [-1, 1], and "ddim" walks `diffusion.dalle2_ddim`, as that package has it;
        "dalle2-pytorch-unclipped": the same without clipping, as there of a network that predicts v
        where predict_x_start=True too, its default; None: guidance starts from a prediction that
        does not see the caption, nothing is clipped, and "ddim" ends at the clean embedding.
    """

    guidance: float = 1.0
    sampler: str = "dpm_solver"
    steps: int | None = None
    num_samples: int = 2
    compat: str | None = None

    def __post_init__(self):
        calls.plain(self)
        calls.check_number("guidance", self.guidance, "try 1.5, or 1 for none")
        one_of("sampler", self.sampler, SAMPLERS)
        calls.check_count("steps", self.steps, most=_MOST_STEPS)
        if self.num_samples is None:
            object.__setattr__(self, "num_samples", 1)
        calls.check_count("num_samples", self.num_samples, most=_MOST_SAMPLES)
        if self.compat is not None:
            one_of("compat", self.compat, COMPATS)
