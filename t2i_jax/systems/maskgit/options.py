"""What MaskGIT can be told when it samples."""

from __future__ import annotations

import dataclasses

from t2i_jax import config
from t2i_jax.decoding.masked import ORDERS, Sampling
from t2i_jax.systems import generation

COMPAT = "muse-maskgit-pytorch"
_MOST_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class MaskGitOptions:
    """How MaskGIT samples.

    Attributes:
      steps: passes through the network; Muse takes 24, and 8 for its super-resolution.
      guidance: scale of classifier-free guidance; 1 is none.
      growing: the guidance grows linearly over the steps, from none to its value (Muse, section
        2.7).
      temperature: of the tokens, falling linearly to 0 at the last step. 0 takes the likeliest.
      choice_temperature: of Gumbel noise on the confidence that decides which tokens stay, falling
        likewise (MaskGIT). muse-maskgit-pytorch has none: 0.
      top_k: sample among the k likeliest tokens only; a float in (0, 1) is a fraction of the
        codebook. None: all.
      top_p: sample among the likeliest tokens that together hold this probability. None: all.
      order: which tokens stay first: "confidence", those that the network is surest of; "halton",
        spread evenly over the image (Besnier et al. 2025); "random".
      remask: tokens that stayed may be masked again.
      critic: a critic, where one was trained, says which tokens are masked again.
      critic_noise: of uniform noise on its scores, falling linearly to 0.
      plausibility: with guidance, tokens are left out whose probability given the caption is below
        this share, 0 to 1, of the likeliest one's. None or 0: none are left out, as in
        muse-maskgit-pytorch.
      strength: share of the tokens of init_images that is masked at the beginning where no mask is
        given, from above 0 to 1.
      edit_steps: mask-free editing (Muse, section 3.3): so many times a few tokens of init_images
        are masked and drawn anew. None: init_images without a mask are changed by `strength`.
      edit_share: share of the tokens that each of these times masks, from above 0 to 1.
      feather: what a mask keeps of init_images is kept in the pixels too, blended into the rest
        over so many pixels. None: it is kept in the tokens alone.
      compat: "muse-maskgit-pytorch": no guidance on the scores of a critic that reads the network's
        own vectors; and the second stage of Muse encodes the small images anew. None: guided like
        those of any critic; and the second stage is given the tokens of the first.
    """

    steps: int = 24
    guidance: float = 3.0
    growing: bool = True
    temperature: float = 1.0
    choice_temperature: float = 0.0
    top_k: int | float | None = None
    top_p: float | None = None
    order: str = "confidence"
    remask: bool = False
    critic: bool = True
    critic_noise: float = 1.0
    plausibility: float | None = 0.1
    strength: float = 0.6
    edit_steps: int | None = None
    edit_share: float = 0.08
    feather: float | None = None
    compat: str | None = None

    def __post_init__(self):
        generation.plain(self)
        generation.check_count("steps", self.steps, most=_MOST_STEPS)
        generation.check_count("edit_steps", self.edit_steps, most=_MOST_STEPS)
        generation.check_number("guidance", self.guidance, "try 3.0, or 1 for none")
        for name in ("temperature", "choice_temperature", "critic_noise"):
            generation.check_number(name, getattr(self, name), "try 1.0", low=0)
        if self.plausibility is not None:
            remedy = "try 0.1, or 0 for none"
            generation.check_number("plausibility", self.plausibility, remedy, low=0, high=1)
        for name in ("strength", "edit_share"):
            generation.check_number(name, getattr(self, name), "try 0.6", low=1e-3, high=1)
        if self.feather is not None:
            generation.check_number("feather", self.feather, "try 4", low=0)
        if self.compat is not None:
            config.one_of("compat", self.compat, (COMPAT,))
        config.one_of("order", self.order, ORDERS)
        _ = self.sampling  # refuses steps, top_k and top_p

    @property
    def sampling(self) -> Sampling:
        """What of it shapes the compiled program."""
        return Sampling(
            guided=self.guidance != 1,
            top_k=self.top_k,
            top_p=self.top_p,
            steps=self.steps,
            growing=self.growing,
            order=self.order,
            remask=self.remask,
        )
