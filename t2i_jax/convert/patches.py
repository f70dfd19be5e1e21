"""The images of a vision transformer, which are squares of whole patches here."""

from __future__ import annotations

from typing import Any

from t2i_jax.errors import UserError


def check(kind: str, image_size: Any, patch_size: Any) -> None:
    """Refuses other images than squares of whole patches.

    Args:
      kind: what the sizes are of, for the message. image_size, patch_size: pixels, a number or
        (height, width), as a configuration tells them; None: it does not, so the weights decide.

    Raises:
      UserError: height and width differ, or a patch does not divide them.
    """
    if image_size is None or patch_size is None:
        return
    sides, patch = (_both(size) for size in (image_size, patch_size))
    if len({*sides}) == len({*patch}) == 1 and sides[0] % patch[0] == 0:
        return
    raise UserError(
        f"{kind} has image_size={image_size!r} and patch_size={patch_size!r}, and images are "
        "squares of whole patches here; give a network of such images."
    )


def _both(size):
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)
