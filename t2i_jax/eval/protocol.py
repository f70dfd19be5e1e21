"""Named protocols of evaluation: which images are compared with which, and at what size.

Published FIDs of one model differ by more than the models do, because of the captions, the
reference, the crop, the filter and the Inception mode. A protocol has all of these in its fields,
and results of different protocols are refused for comparison.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import config, paths
from t2i_jax.errors import UserError
from t2i_jax.eval import prompt_files, resize
from t2i_jax.eval.prompts import PromptSet
from t2i_jax.values import Count, shown

CROPS = ("square", "adm", "none")
FILTERS = ("lanczos", "bicubic", "none")
MODES = ("clean", "tf", "pytorch-fid")
CHOICES = ("drawn", "first", "listed", "")
_SEED = 0  # of the images that a protocol draws from MS-COCO


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol of evaluation: the choice of generated and real images, and the size to which both
    are brought.

    Attributes:
      name: of the protocol.
      captions: which prompts images are generated for, in words; "" for classes.
      count: of generated images.
      reference: the real images, in words.
      reference_count: how many those are; None: as many as the user's files hold.
      size: side in pixels of both sides before the extractor's own resize; None: as they are.
      crop: of images of other sizes: "square" (the largest square in the middle), "adm" (as
        `resize.adm_crop`), "none".
      filter: with which the crop is resized, antialiased, to uint8: "lanczos", "bicubic", "none".
      modes: the Inception modes in which the Frechet distance is told.
      encoding: of generated images; reference images stay as they are.
      source: who defined it.
      left_open: what its source does not tell, in words; "" where nothing is.
      chosen: how `captions` are taken from MS-COCO's JSON: `count` images "drawn" by PCG64(0), or
        the "first" by their ids; "listed": not from it, but from the file that `captions` begins
        with; "": it says nothing of them.
    """

    name: str
    captions: str
    count: Count
    reference: str
    reference_count: int | None
    size: int | None
    crop: str
    filter: str
    modes: tuple[str, ...]
    encoding: str = "png"
    source: str = "this package"
    left_open: str = ""
    chosen: str = ""

    def __post_init__(self):
        config.one_of("protocol.crop", self.crop, CROPS)
        config.one_of("protocol.filter", self.filter, FILTERS)
        config.one_of("protocol.chosen", self.chosen, CHOICES)
        for mode in self.modes:
            config.one_of("protocol.modes", mode, MODES)
        if (self.crop == "none") != (self.size is None):
            raise UserError(
                f"protocol.crop={self.crop!r} with size={self.size}; give a crop and a size, or "
                "neither."
            )
        if self.crop == "square" and self.filter == "none":
            raise UserError("protocol.filter='none' with crop='square'; give lanczos or bicubic.")

    def bring(self, image_HWC: np.ndarray) -> np.ndarray:
        """An image, generated or real, at the size of the protocol: uint8 (size, size, 3).

        An image that has that size already is given back as it is.

        Args:
          image_HWC: uint8 with 1 or 3 channels, of any size.
        """
        image_HWC = _rgb(image_HWC)
        if self.size is None or image_HWC.shape[:2] == (self.size, self.size):
            return image_HWC
        if self.crop == "adm":
            return resize.adm_crop(image_HWC, self.size)
        return resize.square(image_HWC, self.size, self.filter)

    def check_reference(
        self, named: str, count: int | None, made_by: Mapping[str, Any] | None = None
    ) -> None:
        """Refuses another reference than that of the protocol, as far as is known of it.

        Args:
          named: the reference, as "reference='DIR'". count: of its images; None: nobody has said.
          made_by: JSON of the protocol that statistics were made by, {} for none; None: nobody has
            said.

        Raises:
          UserError: another number of images, or brought to another size, crop or filter.
        """
        if self.reference_count is not None and count not in (None, self.reference_count):
            raise UserError(
                f"protocol={self.name} compares with {self.reference_count:,} images "
                f"({self.reference}), and {named} has {count:,}; give that many, or leave "
                "--protocol out."
            )
        for field in ("size", "crop", "filter") if made_by is not None else ():
            there, wanted = (made_by or {}).get(field), getattr(self, field)
            if there != wanted:
                raise UserError(
                    f"protocol={self.name} brings images to {field}={wanted!r}, and {named} was "
                    f"made by {field}={there!r}; make it with --protocol {self.name}, or leave "
                    "--protocol out."
                )

    def seed_of_prompts(self, seed: int) -> int | None:
        """The seed by which prompts are drawn from MS-COCO, as `prompts.read` takes it: where the
        protocol chooses them, no seed of the images changes them.

        Args:
          seed: of the images.
        """
        return {"drawn": _SEED, "first": None}.get(self.chosen, seed)

    def check_prompts(self, prompts: PromptSet) -> None:
        """Refuses captions that are taken from MS-COCO in another way.

        Raises:
          UserError: they are.
        """
        is_whole = prompts.kind == "coco" and prompts.source.lower().endswith(".json")
        if is_whole and self.other_prompts(prompts.about()) is not None:
            raise UserError(
                f"protocol={self.name} is of {self.captions}, and prompts="
                f"{paths.shown(prompts.source)} gives others ({prompts.rule}); give those, or "
                "leave --protocol out."
            )

    def other_prompts(self, prompts: Mapping[str, Any] | None) -> str | None:
        """A warning that prompts may be others than the protocol's; None: they are its own, as far
        as their kind, rule and name tell, or it says nothing of them.

        Args:
          prompts: JSON, see `PromptSet.about`; None: nothing is known of them.
        """
        if not self.chosen or (prompts is not None and self._chose(prompts)):
            return None
        of = "the images" if prompts is None else paths.shown(prompts["source"])
        return f"protocol={self.name} is of {self.captions}, and those of {of} may be others"

    def _chose(self, prompts):
        if self.chosen == "listed":
            name, own = pathlib.Path(prompts["source"]).name, self.captions.partition(":")[0]
            return prompts["kind"] in ("coco", "file") and name == own
        rule = prompt_files.rule_of_coco(self.seed_of_prompts(_SEED))
        return prompts["kind"] == "coco" and prompts["rule"] == rule

    def about(self) -> dict[str, Any]:
        """The fields as JSON, for results; `captions` tells what `chosen` does."""
        told = {**dataclasses.asdict(self), "modes": list(self.modes)}
        return {name: told[name] for name in told if name != "chosen"}


_VAL = "all images of MS-COCO val2014"
PROTOCOLS: dict[str, Protocol] = {
    one.name: one
    for one in (
        Protocol(
            name="coco30k",
            captions="30,000 images of val2014 drawn by PCG64, of each the first caption by id",
            count=30_000, reference=_VAL, reference_count=40_504,
            size=256, crop="square", filter="lanczos", modes=("clean", "tf"),
            chosen="drawn",
        ),
        Protocol(
            name="coco30k-gigagan",
            captions="30,000 captions of val2014",
            count=30_000, reference=_VAL, reference_count=40_504,
            size=256, crop="square", filter="lanczos", modes=("clean",),
            source="github.com/mingukkang/GigaGAN, folder evaluation",
            left_open="which 30,000 captions",
            chosen="drawn",
        ),
        Protocol(
            name="coco30k-t2ibench",
            captions="MS-COCO_val2014_30k_captions.csv",
            count=30_000,
            reference="MS-COCO_val2014_fid_stats.npz", reference_count=None,
            # 299 pixels, rounded, then 2 (x / 255) - 1: at that size mode pytorch-fid resizes
            # nothing, and its scaling is this one
            size=299, crop="square", filter="bicubic", modes=("pytorch-fid",),
            source="github.com/boomb0om/text2image-benchmark, release v0.0.1",
            chosen="listed",
        ),
        Protocol(
            name="coco30k-dmgan",
            captions="uid_caption.csv: 30,000 images of val2014, of each a caption drawn from 5",
            count=30_000, reference="the same 30,000 images", reference_count=30_000,
            size=256, crop="square", filter="bicubic", modes=("tf",),
            source="github.com/MinfengZhu/DM-GAN, folder eval/FID",
            left_open="crop and filter of the real images; here they are these",
            chosen="listed",
        ),
        Protocol(
            name="coco10k-mosaic",
            captions="the first 10,000 of val2014",
            count=10_000, reference="the same 10,000 images", reference_count=10_000,
            size=512, crop="square", filter="bicubic", modes=("clean",),
            source="github.com/mosaicml/diffusion",
            left_open="the filter; here it is this one",
            chosen="first",
        ),
        Protocol(
            name="imagenet50k",
            captions="",
            count=50_000, reference="ADM's reference batch of ImageNet",
            reference_count=None,
            size=256, crop="adm", filter="none", modes=("tf",),
            source="github.com/openai/guided-diffusion, folder evaluations",
        ),
        Protocol(
            name="tokenizer50k",
            captions="",
            count=50_000, reference="the images that were reconstructed", reference_count=50_000,
            size=256, crop="adm", filter="none", modes=("tf",),
            source="github.com/openai/guided-diffusion for the crop",
        ),
    )
}  # fmt: skip


def protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
      UserError: there is none.
    """
    config.one_of("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def made_by(about: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """JSON of the protocol that statistics were made by; {}: by none; None: nobody has said.

    Args:
      about: JSON beside the statistics, which a person may have edited.
    """
    if "protocol" not in about:
        return None
    found = about["protocol"]
    return found if isinstance(found, Mapping) else {}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two descriptions differ, by their paths, with both values.

    Mappings are compared inside, a field that only one has counts as None in the other.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys((*a, *b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found |= {f"{name}.{inner}": pair for inner, pair in differences(left, right).items()}
        elif _as_json(left) != _as_json(right):
            found[name] = left, right
    return found


def require_same(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Refuses two results of different protocols.

    Args:
      what: the metric that is compared, for the sentence.

    Raises:
      UserError: they differ; with the first field, both values and how many others differ.
    """
    if found := differences(a, b):
        field, (left, right) = next(iter(found.items()))
        more = f", and {len(found) - 1} more fields differ" if len(found) > 1 else ""
        raise UserError(
            f"{what} can't be compared: {field}={shown(left)} in the first and {shown(right)} in "
            f"the second{more}; measure both the same way."
        )


def _as_json(value):
    return list(value) if isinstance(value, tuple) else value


def _rgb(image_HWC):
    image_HWC = np.asarray(image_HWC)
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[-1] not in (1, 3):
        raise UserError(
            f"an image is {image_HWC.dtype}{image_HWC.shape}; give uint8 (H, W, 3) or (H, W, 1)."
        )
    return np.repeat(image_HWC, 3, axis=-1) if image_HWC.shape[-1] == 1 else image_HWC
