"""The extractors that a command names, with the files of their weights."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from t2i_jax import config
from t2i_jax.cluster import processes
from t2i_jax.errors import UserError
from t2i_jax.eval import extractors, lpips, resize, weights_file
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.lpips import LpipsMetric
from t2i_jax.models.lpips import TRUNKS
from t2i_jax.systems import notices
from t2i_jax.values import shown

FOLDER = "T2I_WEIGHTS"
"""The environment variable of a folder with weights, each under a name that begins as `NAMES`."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "inception": ("pt_inception", "inception"),
    "clip": ("clip-vit-base", "clip"),
    "cmmd": ("cmmd", "clip-vit-large-patch14-336"),
    "dinov2": ("dinov2-large", "dinov2"),
    "pickscore": ("pickscore", "PickScore"),
    "hpsv2": ("hpsv2", "HPS_v2_", "HPS_v2"),
    "alex": ("alexnet-owt-",),  # alex.pth is that of LPIPS's heads
    "vgg": ("vgg16-",),  # vgg16_bn-... is another network
}
"""For each network the beginnings of its files' and folders' names, as published or as its option;
the first that is found counts. LPIPS, which no option asks for by its name, has the published ones
alone."""
_OTHERS = ("inception_v3_google",)  # torchvision's, in a cache of PyTorch beside those of LPIPS


@dataclasses.dataclass(frozen=True)
class Weights:
    """Paths of each network's weights; None: in the folder that T2I_WEIGHTS names.

    Attributes:
      inception: the state dict that pytorch-fid and torch-fidelity read.
      clip: folder of a CLIP, ViT-B/32 where nothing else is wanted, for CLIP score and CLIP-FID.
      cmmd: folder of CLIP ViT-L/14-336.
      dinov2: folder of DINOv2 ViT-L/14.
      pickscore: folder of PickScore v1.
      hpsv2: file of HPS v2 or v2.1; its vocabulary is that of `clip`.
      alex, vgg: files of the trunks of LPIPS.
    """

    inception: pathlib.Path | None = None
    clip: pathlib.Path | None = None
    cmmd: pathlib.Path | None = None
    dinov2: pathlib.Path | None = None
    pickscore: pathlib.Path | None = None
    hpsv2: pathlib.Path | None = None
    alex: pathlib.Path | None = None
    vgg: pathlib.Path | None = None

    def of(self, network: str) -> pathlib.Path | None:
        """The file or folder of a network; None: nothing is known, and its reader says what is
        missing.
        """
        given = getattr(self, network)
        home = os.environ.get(FOLDER)
        if given is not None or not home:
            return given
        there = sorted(pathlib.Path(home).expanduser().glob("*"))
        there = [path for path in there if not path.name.startswith(_OTHERS)]
        found = (path for name in NAMES[network] for path in there if path.name.startswith(name))
        return next(found, None)


def build(network: str, modes: Sequence[str], weights: Weights) -> list[Extractor]:
    """The extractors of a network: of "inception" one for each mode. A line tells of a file that is
    not the published one.

    Raises:
      UserError: an unknown mode, or weights that are missing; the sentence says where they come
        from.
    """
    found = _built(network, modes, weights)
    for one in found[:1]:  # all modes have one file
        _tell_of_other(network, one.about)
    return found


def build_lpips(weights: Weights) -> dict[str, LpipsMetric]:
    """The LPIPS metrics by each trunk whose weights are given, or lie in the folder that
    T2I_WEIGHTS names; a line tells of a file that is not the published one, and where LPIPS that
    nobody has asked for is left out, as the package with the weights of its layers is missing.

    Raises:
      UserError: weights that are missing or do not fit.
    """
    found = {}
    for trunk in TRUNKS:
        if (path := weights.of(trunk)) is None:
            continue
        if getattr(weights, trunk) is None and lpips.installed_heads(trunk) is None:
            _tell(
                f"LPIPS is left out: {FOLDER} has {path.name}, and the package lpips with the "
                "weights of its layers is not there; install lpips 0.1.4 for it"
            )
            continue
        found[trunk] = lpips.lpips(trunk, path)
        _tell_of_other(f"lpips-{trunk}", found[trunk].about["features"])
    return found


def _tell_of_other(what, about):
    if (told := weights_file.told_of_other(what, about)) is not None:
        _tell(told)


def _tell(sentence):
    if processes.is_first():
        notices.tell(sentence)


def _built(network, modes, weights):
    path = weights.of(network)
    if network == "inception":
        return [extractors.inception(path, mode) for mode in modes]
    if network == "clip":
        return [extractors.clip(path)]
    if network == "cmmd":
        return [extractors.clip(path, "cmmd", what="clip-vit-l-14-336")]
    if network == "dinov2":
        return [extractors.dinov2(path)]
    if network == "pickscore":
        return [extractors.pickscore(path)]
    return [extractors.hpsv2(path, weights.of("clip"))]


Build = Callable[[str, Sequence[str], Weights], list[Extractor]]
"""The type of `build`: (network, modes, weights) -> extractors."""


def build_once() -> Build:
    """A form of `build` that reads a file of weights once, however often its network is asked for.
    Every answer has its own place on the devices, which is freed with it; the weights themselves
    stay in the host's memory as long as what is returned here.
    """
    known = functools.cache(build)

    def found(network: str, modes: Sequence[str], weights: Weights) -> list[Extractor]:
        return [dataclasses.replace(one) for one in known(network, tuple(modes), weights)]

    return found


def check_apart(found: Mapping[str, Sequence[Extractor]]) -> None:
    """Refuses extractors of two networks that have one name and differ, as CLIP ViT-L/14-336 by the
    preprocessing of CLIP score and by that of CMMD: results tell extractors apart by their names.

    Args:
      found: by network.

    Raises:
      UserError: there are such.
    """
    known: dict[str, tuple[str, Extractor]] = {}
    for network, some in found.items():
        for one in some:
            first, other = known.setdefault(one.name, (network, one))
            if other.about != one.about:
                raise UserError(
                    f"{first} and {network} are both {one.name!r}, by two files or preprocessings, "
                    "which results would not tell apart; leave out the metrics of one of them."
                )


def parse_modes(text: str) -> list[str]:
    """The modes in "clean,tf".

    Raises:
      UserError: an unknown one, one that stands twice, or none.
    """
    modes = [mode.strip() for mode in text.split(",") if mode.strip()]
    if not modes:
        raise UserError(f"mode={text!r} names none; give for example clean.")
    for mode in modes:
        config.one_of("mode", mode, resize.INCEPTION)
        if modes.count(mode) > 1:
            raise UserError(f"mode={shown(text)} has {mode} twice; give it once.")
    return modes


def check_mode(mode: str | None, uses_inception: bool, where: str) -> None:
    """Refuses a mode where no Inception reads it.

    Args:
      where: the option that would ask for Inception.
    """
    if mode is not None and not uses_inception:
        raise UserError(
            f"mode={shown(mode)} says how images are made smaller for Inception, which {where} "
            "does not ask for; leave it out."
        )
