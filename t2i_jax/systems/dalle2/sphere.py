"""Ways between vectors of length 1."""

from __future__ import annotations

import numpy as np


def slerp(one_BD: np.ndarray, other_BD: np.ndarray, share: float) -> np.ndarray:
    """Vectors (B, D) of length 1 on the shortest arc from one to the other (Shoemake 1985).

    Args:
      one_BD, other_BD: vectors of any length but 0; opposite ones have no shortest arc, and the
        result is then somewhere between. share: how far it is on the way, from 0 to 1.
    """
    one, other = (
        v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)
        for v in (np.asarray(one_BD, np.float64), np.asarray(other_BD, np.float64))
    )
    angle = np.arccos(np.clip((one * other).sum(-1, keepdims=True), -1.0, 1.0))
    straight = np.sin(angle) < 1e-6  # where the arc is a straight line, or none
    over = np.where(straight, 1.0, np.sin(angle))
    first = np.where(straight, 1 - share, np.sin((1 - share) * angle) / over)
    second = np.where(straight, share, np.sin(share * angle) / over)
    mixed = first * one + second * other
    mixed /= np.maximum(np.linalg.norm(mixed, axis=-1, keepdims=True), 1e-12)
    return mixed.astype(np.float32)
