"""The sizes of images and of those that they are compared with, where no protocol brings both to
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def told_of_results(results: Mapping[str, Any]) -> str | None:
    """The warning of `told` for the contents of results.json, as a sentence without its full stop;
    None too where a protocol was given, or nothing tells of the sizes.
    """
    for one in results["metrics"] if results["protocol"] is None else ():
        real = (one["reference"] or {}).get("sizes")
        if not real or not is_whole(one["extractor"]):
            continue
        if said := told(results["generated"][one["extractor"]["name"]]["sizes"], real):
            return f"{said}; give --protocol NAME for numbers that stand beside those of others"
    return None


def _is_square(size):
    width, _, height = size.partition("x")
    return width == height


def _shown(sizes):
    """The most frequent one, and how many others there are."""
    most, others = max(sizes, key=lambda size: sizes[size]), len(sizes) - 1
    return f"{most} (and {counted(others, 'other size')})" if others else most
