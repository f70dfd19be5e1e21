"""The sizes of images and of those that they are compared with, where no protocol brings both to
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2i_jax.eval import protocol as protocols
from t2i_jax.runs.scoring.reference import Reference
from t2i_jax.words import counted


def told(own: Mapping[str, int], real: Mapping[str, int]) -> str | None:
    """A warning that features may differ by the sizes of images alone, as the beginning of a
    sentence; None: all images are squares of the same sizes.

    Args:
      own, real: by size, as "640x480", how many images have it: of those that are measured, and of
        the real ones.
    """
    if own.keys() == real.keys() and all(map(_is_square, real)):
        return None
    return (
        f"images are {_shown(own)} pixels and those of the reference {_shown(real)}, and each is "
        "made as large as the network's input as it is, which no protocol does"
    )


def is_whole(extractor: Mapping[str, Any]) -> bool:
    """Whether a network is given whole images, of which alone `told` is true, and not squares that
    its preprocessing cuts out of them.

    Args:
      extractor: what results keep of it.
    """
    return extractor.get("preprocessing", {}).get("crop", "none") in ("none", "padded")


def told_of_results(results: Mapping[str, Any], reference: Reference | None) -> str | None:
    """The warning of `told` for the contents of results.json, as a sentence without its full stop;
    None too where a protocol was given, or nothing tells of the sizes.

    Args:
      reference: that the results are of; None: they compare with none.
    """
    if reference is None or results["protocol"] is not None:
        return None
    for one in results["metrics"]:
        if one["reference"] is None or not is_whole(one["extractor"]):
            continue
        name = one["extractor"]["name"]
        real, own = reference.sizes(name), results["generated"][name]["sizes"]
        if real and (said := told(own, real)):
            made_by = protocols.made_by(one["reference"].get("made_from") or {}) or {}
            named = made_by.get("name", "NAME")
            return f"{said}; give --protocol {named} for numbers that stand beside those of others"
    return None


def _is_square(size):
    width, _, height = size.partition("x")
    return width == height


def _shown(sizes):
    """The most frequent one, and how many others there are."""
    most, others = max(sizes, key=lambda size: sizes[size]), len(sizes) - 1
    return f"{most} (and {counted(others, 'other size')})" if others else most
