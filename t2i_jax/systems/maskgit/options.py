"""The sampling options of MaskGIT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

from t2i_jax import config
from t2i_jax.decoding.masked import ORDERS, Sampling
from t2i_jax.errors import UserError
from t2i_jax.systems import calls
from t2i_jax.systems.maskgit.windows import size_of
from t2i_jax.values import Range, shown

COMPAT, PUBLISHED = "muse-maskgit-pytorch", "maskgit"
_MOST_STEPS = 10_000
Steps = Annotated[int, Range(1, _MOST_STEPS)]
_WIDEST = 1_000  # widest seam in pixels
_OF_STEPS = (  # options without a use for an edit, which draws a few tokens at a time
    "steps", "growing", "choice_temperature", "order", "remask", "critic", "critic_noise",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MaskGitOptions:
    """The sampling options of MaskGIT.

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
      remask: tokens that stayed may be masked again, as with a critic they always may. By
        confidence, this needs a network that was trained with no_mask_token_prob.
      critic: a critic says which tokens are masked again, whatever the confidence. None: where one
        was trained and order is "confidence".
      critic_noise: of uniform noise on its scores, falling linearly to 0. None: 1.
      plausibility: with guidance, tokens are left out whose probability given the caption is below
        this share, 0 to 1, of the likeliest one's. None or 0: none are left out, as in
        muse-maskgit-pytorch.
      image_size: side of the images in pixels, or (height, width), where they are larger or wider
        than those of training: windows of the trained size slide over them, row by row, each given
        the tokens of those before it. It takes a convolutional tokenizer. None: as trained.
      overlap: share of a window's side that lies over the window before it, from 0 to below 1.
      strength: share of the tokens of init_images that is masked at the beginning where no mask is
        given, from above 0 to 1.
      edit_steps: mask-free editing (Muse, section 3.3): the number of times that a few tokens of
        init_images are masked and drawn anew. None: init_images without a mask are changed by
        `strength`.
      edit_share: share of the tokens that each of these times masks, from above 0 to 1.
      outpaint: what is drawn beside init_images at their left, top, right and bottom, as shares of
        the width and height: (0, 0, 0.5, 0) leaves them the left half. None: nothing.
      feather: what is kept of init_images is kept in the pixels too, blended into the rest over
        this many pixels; 0: without a seam. None: it is kept in the tokens alone.
      compat: "muse-maskgit-pytorch": no guidance on the scores of a critic that reads the network's
        own vectors; with `remask` a token that stayed has the confidence of what was drawn in its
        place and thrown away; and the second stage of Muse encodes the small images anew.
        "maskgit", as in google-research/maskgit: step i of T, from 0 on, begins with a share of
        cos(pi/2 i/T) of the tokens masked, and the temperature does not fall. None: guided like
        those of any critic; its own confidence; the second stage is given the tokens of the first;
        and the share and the temperature fall to 0 at the last step.
    """

    steps: Steps = 24
    guidance: float = 3.0
    growing: bool = True
    temperature: float = 1.0
    choice_temperature: float = 0.0
    top_k: int | float | None = None
    top_p: float | None = None
    order: str = "confidence"
    remask: bool = False
    critic: bool | None = None
    critic_noise: float | None = None
    plausibility: float | None = 0.1
    image_size: int | tuple[int, int] | None = None
    overlap: float = 0.5
    strength: float = 0.6
    edit_steps: Steps | None = None
    edit_share: float = 0.08
    outpaint: tuple[float, float, float, float] | None = None
    feather: float | None = None
    compat: str | None = None

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "strength": ("init_images",),
        "edit_share": ("edit_steps",),
        "feather": ("mask", "outpaint"),
        "overlap": ("image_size",),
    }
    idle_with: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "strength": ("mask", "edit_steps", "outpaint"),
        **dict.fromkeys(_OF_STEPS, ("edit_steps",)),
    }

    def __post_init__(self):
        calls.plain(self)
        calls.check_count("steps", self.steps, most=_MOST_STEPS)
        calls.check_count("edit_steps", self.edit_steps, most=_MOST_STEPS)
        calls.check_number("guidance", self.guidance, "try 3.0, or 1 for none")
        for name in ("temperature", "choice_temperature", "critic_noise"):
            if getattr(self, name) is not None or name != "critic_noise":
                calls.check_number(name, getattr(self, name), "try 1.0", low=0)
        if self.plausibility is not None:
            remedy = "try 0.1, or 0 for none"
            calls.check_number("plausibility", self.plausibility, remedy, low=0, high=1)
        for name, usual in (("strength", 0.6), ("edit_share", 0.08)):
            calls.check_number(name, getattr(self, name), f"try {usual}", low=1e-3, high=1)
        calls.check_number("overlap", self.overlap, "try 0.5", low=0, high=0.99)
        if self.feather is not None:
            remedy = "try 4, or 0 for no seam"
            calls.check_number("feather", self.feather, remedy, low=0, high=_WIDEST)
        if self.compat is not None:
            config.one_of("compat", self.compat, (COMPAT, PUBLISHED))
        config.one_of("order", self.order, ORDERS)
        _ = self.sampling  # refuses steps, top_k and top_p
        size_of(self.image_size)
        if self.outpaint is not None:
            _check_margins(self.outpaint)
        self._check_order()

    def _check_order(self):
        """Refuses options of the confidence and of the critic that the order leaves without a
        use.
        """
        if self.order == "confidence":
            return
        if self.critic:
            raise UserError(
                f"critic=True says which tokens stay, and so does order={self.order!r}; give one "
                "of them."
            )
        if self.choice_temperature:
            raise UserError(
                f"choice_temperature={self.choice_temperature} is noise on the confidence, which "
                f"order={self.order!r} does not look at; leave out one of them."
            )
        if self.remask and self.order == "halton":
            raise UserError(
                "remask=True does nothing with order='halton', in which the same tokens always "
                "come first; leave out one of them."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The options without an effect, see `calls.check_used`."""
        found: dict[str, str] = {}
        if self.guidance == 1:
            found = dict.fromkeys(("growing", "plausibility"), "guidance=1")
        if self.temperature == 0:
            found |= dict.fromkeys(("top_k", "top_p"), "temperature=0")
        return found

    @property
    def sampling(self) -> Sampling:
        """The part of the options that shapes the compiled program."""
        return Sampling(
            guided=self.guidance != 1,
            top_k=self.top_k,
            top_p=self.top_p,
            steps=self.steps,
            growing=self.growing,
            order=self.order,
            remask=self.remask,
            score_drawn=self.remask and self.compat == COMPAT,
            schedule=PUBLISHED if self.compat == PUBLISHED else "muse",
        )


def _check_margins(outpaint):
    """Refuses shares that are none, or that leave nothing of an image."""
    if not isinstance(outpaint, tuple) or len(outpaint) != 4:
        raise UserError(
            f"outpaint={shown(outpaint)} is not (left, top, right, bottom); try (0, 0, 0.5, 0)."
        )
    for share in outpaint:
        calls.check_number("outpaint", share, "try (0, 0, 0.5, 0)", low=0, high=1)
    left, top, right, bottom = outpaint
    if max(left + right, top + bottom) >= 1 or not any(outpaint):
        raise UserError(
            f"outpaint={outpaint} leaves no room for init_images, or none around them; try (0, 0, "
            "0.5, 0)."
        )
