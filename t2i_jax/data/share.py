"""The share of an endless order of samples that a process reads: its rows of every batch, whatever
the number of processes, as long as no sample is passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Share:
    """The positions in the order that one process has still to read.

    A batch is `batch_size` positions in a row, and a process reads the same rows of each: together
    the processes read what one alone would. A process that meets a sample which can't be used, or
    is held out, takes the next of its own rows, and so gets ahead of others: an epoch has the same
    samples, batches are made up otherwise than with another number of processes.

    Attributes:
      rows: rows of a batch that this process reads, ascending.
      batch_size: rows of a batch in all.
      left: positions that are read first: what others had not yet read when they were dealt out.
      base: position of row 0 of the first batch after `left`.
      taken: rows of those batches that are read already.
    """

    rows: tuple[int, ...]
    batch_size: int
    left: tuple[int, ...] = ()
    base: int = 0
    taken: int = 0

    def position(self, number: int) -> int:
        """The position of the sample that comes after `number` others."""
        if number < len(self.left):
            return self.left[number]
        return self._row(self.taken + number - len(self.left))

    def count_below(self, end: int) -> int:
        """The number of its positions below `end`, which is beyond all of `left`."""
        batches, rest = divmod(end - self.base, self.batch_size)
        rows = batches * len(self.rows) + sum(row < rest for row in self.rows)
        return len(self.left) + max(rows - self.taken, 0)

    def after(self, number: int) -> Share:
        """The share that is left after `number` samples."""
        taken = self.taken + max(number - len(self.left), 0)
        return dataclasses.replace(self, left=self.left[number:], taken=taken)

    def _row(self, number):
        batch, row = divmod(number, len(self.rows))
        return self.base + batch * self.batch_size + self.rows[row]


def deal(shares: Sequence[Share], rows: Sequence[int], batch_size: int) -> Share:
    """The share of a process that reads after others: nothing they have read comes again, and
    nothing they have not read is lost.

    Args:
      shares: of all processes that read before. rows, batch_size: of this process, as in `Share`.
    """
    batches = max(-(-share.taken // len(share.rows)) for share in shares)  # that were begun
    unread = {position for share in shares for position in share.left}
    for share in shares:  # two may have read the same rows
        unread.update(map(share._row, range(share.taken, batches * len(share.rows))))
    end, left = shares[0].base + batches * shares[0].batch_size, sorted(unread)
    # as if `left` were consecutive, just before `end`
    fresh = Share(tuple(rows), batch_size, base=end - len(left))
    first = [left[fresh.position(i) - fresh.base] for i in range(fresh.count_below(end))]
    return dataclasses.replace(fresh, left=tuple(first), taken=len(first))
