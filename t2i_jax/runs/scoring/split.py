"""Numbered images in shards, and which process works on which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax

SHARD_SIZE = 1000
"""The number of images in a shard."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Images 0 to count - 1, in shards of `size`; the last may be smaller.

    Attributes:
      count: of images.
      size: of a shard.
    """

    count: int
    size: int = SHARD_SIZE

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.count // self.size)

    def rows(self, shard: int) -> range:
        """The numbers of the images of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of the shards that one of several processes works on: every `of`-th one.

    Attributes:
      process: its number, from 0.
      of: how many there are.
    """

    process: int = 0
    of: int = 1

    @classmethod
    def here(cls) -> Share:
        """The share of this process."""
        return cls(jax.process_index(), jax.process_count())

    def mine(self, shards: int) -> Iterator[int]:
        """The numbers of the shards that are this process's."""
        return iter(range(self.process, shards, self.of))
