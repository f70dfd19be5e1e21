"""Ratios of widths: the argument of a constructor that gave them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def ratio(pairs: Sequence[tuple[int, int]]) -> float | None:
    """The number r with int(width * r) == hidden for all pairs (width, hidden), of those the one
    with the smallest denominator; None where there is none.

    So (8, 21) gives 8 / 3, and (8, 16) with (16, 32) gives 2.
    """
    low = max(Fraction(hidden, width) for width, hidden in pairs)
    high = min(Fraction(hidden + 1, width) for width, hidden in pairs)
    if low >= high:
        return None
    denominator = next(d for d in range(1, low.denominator + 1) if math.ceil(low * d) < high * d)
    found = math.ceil(low * denominator) / denominator
    if any(int(width * found) != hidden for width, hidden in pairs):  # a float just below
        found = float((low + high) / 2)
    return found
