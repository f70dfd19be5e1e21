"""The claims of captions of compositions: items with their number, size, colour and form, a
relation between them, and what must not be there.
"""

from __future__ import annotations

import dataclasses
import re

from t2i_jax.errors import UserError

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "black")
FORMS = ("circle", "ring", "square", "diamond", "triangle", "cross")
SIZES = ("small", "medium", "large")
NUMBERS = ("one", "two", "three", "four", "five")
RELATIONS = {
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "left of": "left",
    "right of": "right",
    "next to": "near",
    "beside": "near",
    "between": "between",
}
_COLOUR, _SIZE = "|".join(COLOURS), "|".join(SIZES)
_NOUN = f"({'|'.join(FORMS)}|shape)(es|s)?"
_ITEM = re.compile(
    rf"\b(?:(an?|{'|'.join(NUMBERS)}|[1-5]) )?(?:({_SIZE}) )?(?:({_COLOUR}) )?{_NOUN}\b"
    rf"(?: (?:that (?:is|are)|in) ({_COLOUR}|{_SIZE})\b)?"
    rf"(?: (?:that (?:is|are)|but) not (?:an? )?({_COLOUR}|{'|'.join(FORMS)})\b)?"
)
_COUNTS = (*NUMBERS, "1", "2", "3", "4", "5")
_ABSENT = re.compile(rf"\bnone of them ({_COLOUR})\b")
_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")


@dataclasses.dataclass(frozen=True)
class Item:
    """Objects of one kind that a caption names; None is left open.

    Attributes:
      count: how many. is_counted: whether a number says so ("one circle", not "a circle").
      size, colour, form: what they are. not_colour, not_form: what they are not.
    """

    count: int
    is_counted: bool
    size: str | None = None
    colour: str | None = None
    form: str | None = None
    not_colour: str | None = None
    not_form: str | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """The claims of one caption.

    Attributes:
      items: in the order of the relation: what is above, what below it; of "between" the middle
        first.
      relation: of `RELATIONS`, or None.
      absent: a colour that no object may have, or None.
    """

    items: tuple[Item, ...]
    relation: str | None = None
    absent: str | None = None

    @property
    def count(self) -> int:
        """The number of objects in all."""
        return sum(item.count for item in self.items)


def parse(caption: str) -> Claim:
    """The claim of a caption such as "a red ring to the left of a blue cross".

    Raises:
      UserError: it names no objects, more than 5, or not as many as its relation is between.
    """
    text = " ".join(caption.lower().split())
    found = [match.groups() for match in _ITEM.finditer(text)]
    items = [_item(*one) for one in found]
    # "six circles": of what has no number that is known, nothing can be judged
    uncounted = any(plural and number not in _COUNTS for number, _, _, _, plural, *_ in found)
    absent, relation = _ABSENT.search(text), _RELATION.search(text)
    kind = RELATIONS[relation.group(1)] if relation else None
    wanted = {None: (1, 2), "between": (3,)}.get(kind, (2,))
    if uncounted or len(items) not in wanted or sum(item.count for item in items) > len(NUMBERS):
        raise UserError(
            f"caption={caption!r} is not about one to five objects, two in a relation or one "
            f"between two; write it like 'two red circles' (colours {', '.join(COLOURS)}; forms "
            f"{', '.join(FORMS)})."
        )
    if "between them" in text:  # "a and b with c between them"
        items = [items[2], *items[:2]]
    return Claim(tuple(items), kind, absent and absent.group(1))


def _item(number, size, colour, noun, plural, what, not_what):
    del plural
    number = number or "a"
    is_counted = number in _COUNTS
    count = 1
    if is_counted:
        count = int(number) if number.isdigit() else NUMBERS.index(number) + 1
    form = None if noun == "shape" else noun
    # "two shapes" are two of anything, and the number is not what is asked
    return Item(
        count,
        is_counted,
        what if what in SIZES else size,
        what if what in COLOURS else colour,
        form,
        not_what if not_what in COLOURS else None,
        not_what if not_what in FORMS else None,
    )
