"""Packing a source into shards that are read fast from anywhere."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from t2i_jax import paths
from t2i_jax.cluster import lock
from t2i_jax.data import arrayrecord
from t2i_jax.data.arrayrecord import (
    ShardWriter,
    record_to_bytes,
    write_manifest,
)
from t2i_jax.data.crop import resized
from t2i_jax.data.image_file import decode, is_plain
from t2i_jax.data.ledger import Ledger
from t2i_jax.data.source import BadSample, Source
from t2i_jax.errors import UserError
from t2i_jax.files import replacing

_AT_ONCE = 64  # records that are prepared side by side
LIMIT = "--max-bad-rate"
_JPEG_QUALITY = 95  # quality of JPEG files that are made smaller

Progress = Callable[[Iterable[int]], Iterable[int]]  # goes over indices and may show how far it is


def pack(
    source: Source,
    out: str | os.PathLike,
    *,
    name: str,
    size: int | None = None,
    captions: bool = True,
    max_bad_rate: float = 0.05,
    shard_bytes: int = 256 * 2**20,
    progress: Progress = iter,
) -> Mapping[str, Any]:
    """Writes a source as a packed set, which "arrayrecord:OUT" reads, and returns its manifest.

    An image file of a common kind is stored as it is, any other as PNG of what it decodes to, with
    its transparency. What
    cannot be used is left out and counted. Records are streamed; OUT appears when it is complete.

    Args:
      out: a new or empty folder, or a link to one.
      name: of the source, for the manifest.
      size: the shorter side of larger images, which are made smaller (JPEG stays JPEG); None: as
        they are.
      captions: False packs images alone, and records need no caption.
      max_bad_rate: fraction of records that may be unusable.
      shard_bytes: of a file, about.
      progress: wraps the indices, such as tqdm.

    Raises:
      UserError: `out` is not empty, a mount point or can't be made, or another command is writing
        it, a size below 1, or too many records that cannot be used.
    """
    if (size is not None and size < 1) or shard_bytes < 1:
        raise UserError(f"size={size} and shard_bytes={shard_bytes} must be at least 1.")
    bad, sizes = Ledger(), _Sizes()
    source = source.counted_anew()
    prepare = _Prepare(source, size, captions)
    with _new_folder(out) as half_done:
        named = f"out={str(out)!r}"
        writer = ShardWriter(half_done, "data", shard_bytes, named)
        seen = 0
        for seen, record in enumerate(side_by_side(prepare, progress(range(len(source)))), 1):
            if isinstance(record, BadSample):
                bad.add(record)
                bad.check(seen, max_bad_rate, limit=LIMIT)
            else:
                writer.write(record_to_bytes(record.file, record.caption))
                sizes.add(record.width, record.height)
        bad.check(seen, max_bad_rate, True, LIMIT)
        if not sizes.count:
            raise UserError(
                f"data.source={name!r} has no sample that can be used ({'; '.join(bad.names)})."
            )
        manifest = {
            "format": arrayrecord.FORMAT,
            "version": arrayrecord.VERSION,
            "source": name,
            "count": sizes.count,
            "captions": captions,
            "size": size,
            "pictures": sizes.summary(),
            "bad": dict(bad.by_reason),
            "bad_names": bad.names,
            "read_in_part": dict(source.read_in_part.different),
            "passed_over": dict(source.passed_over.different),
            "shards": writer.close(),
            "columns": {},
        }
        write_manifest(half_done, manifest, named)
    return manifest


def side_by_side(work: Callable[[int], Any], indices: Iterable[int]) -> Iterator[Any]:
    """The results of `work` for all indices, in order.

    Several threads work on a window of them, as decoders run without Python's lock.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        waiting: collections.deque = collections.deque()
        for index in indices:
            waiting.append(pool.submit(work, index))
            if len(waiting) >= _AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def in_batches(
    read: Callable[[int], Any],
    made: Callable[[list[Any]], Iterable[Any]],
    indices: Iterable[int],
    batch_size: int,
) -> Iterator[Any]:
    """The results for all records, in order; a `BadSample` in place of a record that can't be used.

    Args:
      read: a record, by its index. made: from at most `batch_size` of them, one result for each.
    """

    def careful(index):
        try:
            return read(index)
        except BadSample as bad:
            return bad

    def done(waiting):
        good = [row for row in waiting if not isinstance(row, BadSample)]
        results = iter(made(good) if good else ())
        return [row if isinstance(row, BadSample) else next(results) for row in waiting]

    waiting: list[Any] = []
    for one in side_by_side(careful, indices):
        waiting.append(one)
        if len(waiting) == batch_size:
            yield from done(waiting)
            waiting = []
    if waiting:
        yield from done(waiting)


@dataclasses.dataclass(frozen=True)
class _Packable:
    file: bytes
    caption: str | None
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """Makes a record as it is written, from its index, or returns the BadSample that it is."""

    source: Source
    size: int | None
    captions: bool

    def __call__(self, index: int) -> _Packable | BadSample:
        try:
            return self._read(index)
        except BadSample as bad:
            return bad

    def _read(self, index):
        caption = self.source.caption(index) if self.captions else None
        file = self.source.file(index)
        if file is None:
            return self._packable(self.source.without_caption(index)["image"], None, caption)
        return self._packable(_whole(*file), file[0], caption)

    def _packable(self, image_HWC, data, caption):
        smaller = _smaller(image_HWC, self.size)
        if data is None or smaller is not image_HWC or not is_plain(data):
            was_jpeg = data is not None and data[:2] == b"\xff\xd8"
            data = _encoded(smaller, "JPEG" if was_jpeg and smaller is not image_HWC else "PNG")
        return _Packable(data, caption, smaller.shape[1], smaller.shape[0])


def _whole(data, name):
    """An image with its transparency, where it has some."""
    image_HWC = decode(data, name, 4)
    return image_HWC if image_HWC[..., 3].min() < 255 else image_HWC[..., :3]


class _Sizes:
    """Smallest, mean and largest width and height."""

    def __init__(self):
        self.count = 0
        self._sum, self._low, self._high = (
            np.zeros(2, np.int64),
            np.full(2, 2**31),
            np.zeros(2, np.int64),
        )

    def add(self, width, height):
        one = np.array([width, height])
        self.count += 1
        self._sum, self._low, self._high = (
            self._sum + one,
            np.minimum(self._low, one),
            np.maximum(self._high, one),
        )

    def summary(self):
        return {
            side: {
                "least": int(self._low[i]),
                "mean": round(self._sum[i] / self.count, 1),
                "most": int(self._high[i]),
            }
            for i, side in enumerate(("width", "height"))
        }


@contextlib.contextmanager
def _new_folder(out):
    """A folder that gets its name when all is done; nothing is left of it otherwise."""
    home = pathlib.Path(os.path.realpath(paths.new_folder("out", out)))
    with lock.writing("out", home):
        paths.new_folder("out", out)  # another command may have written it while this one looked
        with replacing(home) as temporary:
            try:
                temporary.mkdir()
            except OSError as error:
                raise UserError(
                    f"out={str(out)!r} can't be made ({error.strerror}); name another folder."
                ) from None
            yield temporary


def _smaller(image_HWC, size):
    height, width = image_HWC.shape[:2]
    if size is None or min(height, width) <= size:
        return image_HWC
    scale = size / min(height, width)
    new = max(size, round(width * scale)), max(size, round(height * scale))
    return resized(image_HWC, new, Image.Resampling.LANCZOS)


def _encoded(image_HWC, kind):
    buffer = io.BytesIO()
    options = {"quality": _JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(np.ascontiguousarray(image_HWC)).save(buffer, format=kind, **options)
    return buffer.getvalue()
