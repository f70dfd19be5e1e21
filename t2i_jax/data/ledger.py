"""The ledger of a set: what is left out of it or cut, counted by reason and named by the first few.

Nothing is left out, cut or replaced in silence: whoever does it writes it here, and `t2i data
inspect`, `t2i data pack`, the start and the end of a training and metrics.json tell it.
"""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from t2i_jax.errors import UserError

if TYPE_CHECKING:
    from t2i_jax.data.source import BadSample

_ENOUGH = 20  # samples after which the rate of bad ones is looked at
_NAMES = 5  # names that are remembered in all
_EXAMPLES = 3  # names that are remembered for each reason
_KNOWN = 1_000_000  # names that are told apart; beyond that every one counts as new


class Ledger:
    """Counts by reason, with examples.

    Safe to use from several threads, and picklable.

    Attributes:
      by_reason: how often for each reason; a sample that comes again in the next epoch counts
        again.
      different: the same, without what came again.
      names: the first five, as "name: reason".
      examples: the first three names for each reason.
    """

    def __init__(self):
        self.by_reason: collections.Counter[str] = collections.Counter()
        self.different: collections.Counter[str] = collections.Counter()
        self.names: list[str] = []
        self.examples: dict[str, list[str]] = {}
        self._known: set[int] = set()
        self._lock = threading.Lock()

    def add(self, bad: BadSample) -> None:
        """Counts a sample that can't be used."""
        self.note(bad.reason, bad.name)

    def note(self, reason: str, name: str, times: int = 1, which: Hashable = None) -> None:
        """Counts something.

        Args:
          reason: few words, the same for all of one kind.
          name: of the file, the record or the member that it happened to; for a reason that came
            `times` times at once, of the first one. which: tells apart what has one name; None: the
            name does.
        """
        name = printable(name)
        with self._lock:
            self.by_reason[reason] += times
            key = _key(reason, name, which)
            if key not in self._known or times > 1:
                self.different[reason] += times
                if len(self._known) < _KNOWN:
                    self._known.add(key)
                examples = self.examples.setdefault(reason, [])
                if len(examples) < _EXAMPLES and name not in examples:
                    examples.append(name)
            said = f"{name}: {reason}"
            if len(self.names) < _NAMES and said not in self.names:
                self.names.append(said)

    @property
    def total(self) -> int:
        """The sum of all counts."""
        with self._lock:
            return sum(self.by_reason.values())

    def check(
        self, seen: int, max_rate: float, done: bool = False, limit: str = "data.max_bad_rate"
    ) -> None:
        """Looks at the rate of bad samples among `seen`, from the 20th on, or sooner when all have
        been seen (`done`).

        Args:
          limit: the name of `max_rate` in the message.

        Raises:
          UserError: the rate is above `max_rate`; it names the first bad ones.
        """
        total = self.total
        if not total or (seen < _ENOUGH and not done) or total <= max_rate * seen:
            return
        raise UserError(
            f"max_bad_rate={max_rate} is exceeded: {total} of {seen} samples cannot be used "
            f"({'; '.join(self.names)}); repair the data or raise {limit}."
        )

    def lines(self, title: str) -> list[str]:
        """The ledger in words: a line with `title` and the sum, and one for each reason."""
        with self._lock:
            if not self.different:
                return []
            return [
                f"{title}: {sum(self.different.values())}",
                *(
                    f"  {reason}: {count} ({_listed(self.examples[reason], count)})"
                    for reason, count in self.different.most_common()
                ),
            ]

    def metrics(self, prefix: str) -> dict[str, float]:
        """{PREFIX + reason: count} without what came again, for metrics.json."""
        with self._lock:
            return {f"{prefix}{reason}": float(count) for reason, count in self.different.items()}

    def stored(self) -> dict[str, Any]:
        """The ledger as JSON values, from which `go_on` continues it."""
        with self._lock:
            return {
                "different": dict(self.different),
                "examples": {reason: list(names) for reason, names in self.examples.items()},
                "known": sorted(self._known),
            }

    def go_on(self, stored: Mapping[str, Any]) -> None:
        """Adds the counts of an earlier ledger: what comes again counts no more. Rates and the
        first five names are those of this one alone.

        Raises:
          KeyError, TypeError, ValueError, AttributeError: it is not what `stored` gave.
        """
        different = {reason: int(count) for reason, count in stored["different"].items()}
        examples = {reason: list(map(str, stored["examples"][reason])) for reason in different}
        known = {int(key) for key in stored["known"]}
        with self._lock:
            self.different.update(different)
            self._known |= known
            for reason, names in examples.items():
                mine = self.examples.setdefault(reason, [])
                mine += [name for name in names if name not in mine][: _EXAMPLES - len(mine)]

    def __getstate__(self):
        with self._lock:
            return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_known")}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock(), _known=set())


def _key(*told):
    """A number that tells what is counted apart, the same in every process."""
    digest = hashlib.blake2b(repr(told).encode("utf-8", "backslashreplace"), digest_size=8)
    return int.from_bytes(digest.digest())


def printable(name: str) -> str:
    """A name that can be printed and stored; file names need not be text, nor fit on a line."""
    name = name.encode("utf-8", "backslashreplace").decode()
    name = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
    return name if len(name) <= 200 else f"{name[:120]}...{name[-60:]}"


def together(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of what several processes counted."""
    found: collections.Counter[str] = collections.Counter()
    for one in metrics:
        found.update({name: int(value) for name, value in one.items()})
    return {name: float(value) for name, value in found.items()}


def _listed(names, count):
    return ", ".join(names) + (", ..." if count > len(names) else "")
