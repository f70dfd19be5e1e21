"""Packed sets: a folder with a manifest and shards of ArrayRecord, and columns of arrays that were
computed from them.

    PACKED/manifest.json                     what there is, written last
    PACKED/data-00000-of-00002.arrayrecord   records: msgpack of {"image": bytes of a file,
                                             "caption": str or None}
    PACKED/text-00000-of-00001.arrayrecord   a column: msgpack of {name: {"dtype", "shape",
                                             "data"}}, in the order of the records; one that could
                                             not be computed is empty
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import pathlib
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from t2i_jax import paths
from t2i_jax.data.caption import clean_caption
from t2i_jax.data.collate import TOKENS
from t2i_jax.data.image_file import ImageFiles, decode
from t2i_jax.data.ledger import Ledger
from t2i_jax.data.source import BadSample, Record
from t2i_jax.errors import UserError
from t2i_jax.files import replacing
from t2i_jax.foreign import json_file

FORMAT, VERSION, MANIFEST = "t2i_jax packed", 1, "manifest.json"
COLUMNS = {  # the columns, and the arrays of each
    "text": ("text_embeds", "text_mask"),
    "tokens": ("tokens",),
    "superres_tokens": ("superres_tokens", "cond_tokens"),
    "clip": ("image_embeds", "caption_embeds"),
}
_EMBEDS = {"text_embeds", "image_embeds", "caption_embeds"}
_NUMBERS = ("codebook_size", "max_length")  # numbers that a column may have been made with
_THEN = " (when it was packed)"
_READ = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_WRITE = "group_size:1,uncompressed"  # each record apart; images are compressed already


class PackedSource(ImageFiles):
    """Random access to a packed set; a record holds the arrays of its columns too.

    Args:
      path: the folder that `pack` wrote.
      columns: which of its columns are read; None: all.

    Attributes:
      manifest: as it stands in manifest.json.

    Raises:
      UserError: no packed set, one of another version, or shards that are missing or of another
        size.
    """

    def __init__(self, path: str, columns: Collection[str] | None = None):
        self.path = paths.given("arrayrecord", path)
        self.manifest = read_manifest(self.path)
        self._data = _Shards(self.path, self.manifest["shards"])
        self._columns = {
            name: check_column(self.path, self.manifest, name)
            for name in self.manifest["columns"]
            if columns is None or name in columns
        }

    def __len__(self) -> int:
        return len(self._data)

    @property
    def stored(self) -> Mapping[str, Mapping[str, Any]]:
        """The manifest's description of each computed column, one of `COLUMNS`."""
        return self.manifest["columns"]

    @property
    def passed_over(self) -> Ledger:
        """The ledger of what was left out and passed over when the set was packed."""
        return self._then("bad", "passed_over")

    @functools.cached_property
    def read_in_part(self) -> Ledger:
        """The ledger of records of which something was left when the set was packed."""
        return self._then("read_in_part")

    def counted_anew(self) -> PackedSource:
        """Itself: nothing is counted when it is read."""
        return self

    @property
    def image_files(self) -> Iterable[pathlib.Path]:
        """The files that hold the records, without those that hold columns."""
        return (self.path / shard["file"] for shard in self.manifest["shards"])

    def file(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image file and the record's name; or `BadSample`."""
        record, name = self._record(index)
        return record["image"], name

    def image_name(self, index: int) -> str:
        """The name of the file of records, with the record's number in it."""
        return self._data.name(index)

    def caption(self, index: int) -> str:
        """The caption; or `BadSample`, also where the set was packed without captions."""
        record, name = self._record(index)
        return clean_caption(record.get("caption"), name)

    def __getitem__(self, index: int) -> Record:
        record, name = self._record(index)  # once for both
        caption = clean_caption(record.get("caption"), name)
        return {
            "image": decode(record["image"], name, self.channels),
            "caption": caption,
            **self._arrays(index),
        }

    def without_image(self, index: int) -> Record:
        """The record without its image.

        Its caption may be None where the set was packed without captions.
        """
        caption = self.caption(index) if self.manifest["captions"] else None
        return {"image": None, "caption": caption, **self._arrays(index)}

    def without_caption(self, index: int) -> Record:
        """The record without its caption."""
        return {**super().without_caption(index), **self._arrays(index)}

    def _then(self, *fields):
        """What the manifest counts there."""
        found, names = Ledger(), self.manifest.get("bad_names")
        named = [one for one in names if isinstance(one, str)] if isinstance(names, list) else []
        for field in fields:
            counts = self.manifest.get(field)
            for reason, count in counts.items() if isinstance(counts, dict) else ():
                end = f": {reason}"
                first = next((one for one in named if one.endswith(end)), self.manifest["source"])
                if _is_count(count) and count:
                    told = f"{reason.removesuffix(_THEN)}{_THEN}"
                    found.note(told, first.removesuffix(end), count)
        return found

    def _record(self, index):
        data, name = self._data.read(index)
        record = _unpacked(data)
        if record is None or not isinstance(record.get("image"), bytes):
            raise BadSample("damaged record", name)
        return record, name

    def _arrays(self, index):
        """The arrays of all columns; None where one is damaged or was not made, and a `BadSample`
        where its numbers can't be right, so that only who wants it misses it.
        """
        arrays: dict[str, Any] = {}
        for name, column in self._columns.items():
            try:
                data, record = column.read(index)
                arrays |= _possible(arrays_from_bytes(data), self.stored[name], record)
            except BadSample:
                arrays |= dict.fromkeys(COLUMNS.get(name, ()))
        return arrays


def _possible(arrays, about, record):
    """The arrays of a column, with a `BadSample` for one of them whose numbers can't be right: a
    token that the codebook does not have, an embedding that is not finite.
    """
    codes = about.get("codebook_size")
    for name in arrays.keys() & {*TOKENS} if codes is not None else ():
        tokens = arrays[name]
        if not np.all((tokens >= 0) & (tokens < codes)):
            arrays = {**arrays, name: BadSample(f"{name} outside 0 to {codes - 1}", record)}
    for name in _EMBEDS & arrays.keys():
        if not np.isfinite(arrays[name].astype(np.float32)).all():
            arrays = {**arrays, name: BadSample("embeddings that are not finite", record)}
    return arrays


class ShardWriter:
    """Writes records into PREFIX-00000-of-0000N.arrayrecord, a new file whenever one is full.

    The files carry their names only after `close`, which returns what a manifest says of them;
    before that they end in .partial.

    Args:
      named: what the folder was given as, for sentences; None: out=FOLDER.
    """

    def __init__(
        self, folder: pathlib.Path, prefix: str, shard_bytes: int, named: str | None = None
    ):
        self._folder, self._prefix, self._shard_bytes = folder, prefix, shard_bytes
        self._named = named or f"out={str(folder)!r}"
        self._counts: list[int] = []
        self._writer: Any = None
        self._written = 0  # bytes in the open file

    def write(self, data: bytes) -> None:
        """Appends one record."""
        if self._writer is None or self._written >= self._shard_bytes:
            self._finish()
            self._writer = ArrayRecordWriter(str(self._partial(len(self._counts))), _WRITE)
            self._counts.append(0)
            self._written = 0
        self._attempt(self._writer.write, data)
        if not self._writer.ok():
            self._refuse()
        self._counts[-1] += 1
        self._written += len(data)

    def close(self) -> list[dict[str, Any]]:
        """[{"file", "count", "bytes"}] of each shard."""
        self._finish()
        shards = []
        for number, count in enumerate(self._counts):
            name = f"{self._prefix}-{number:05d}-of-{len(self._counts):05d}.arrayrecord"
            size = self._partial(number).stat().st_size
            self._partial(number).rename(self._folder / name)
            shards.append({"file": name, "count": count, "bytes": size})
        return shards

    def discard(self) -> None:
        """Removes what was written, when it will not be closed."""
        self._writer = None
        for number in range(len(self._counts)):
            self._partial(number).unlink(missing_ok=True)

    def _finish(self):
        if self._writer is None:
            return
        self._attempt(self._writer.close)
        self._writer = None
        if (
            ArrayRecordReader(str(self._partial(len(self._counts) - 1)), _READ).num_records()
            != self._counts[-1]
        ):
            self._refuse()  # closing says nothing of a full disk

    def _attempt(self, act, *arguments):
        try:
            act(*arguments)
        except RuntimeError:  # ArrayRecord's, of every failure
            self._refuse()

    def _refuse(self):
        raise UserError(
            f"{self._named} can't be written to; make room or give another folder."
        ) from None

    def _partial(self, number):
        return self._folder / f"{self._prefix}-{number:05d}.partial"


def record_to_bytes(image: bytes, caption: str | None) -> bytes:
    """A record of a packed set: the bytes of an image file and a caption."""
    return msgpack.packb({"image": image, "caption": caption})


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A record of a column."""
    plain = {
        name: {"dtype": a.dtype.name, "shape": a.shape, "data": a.tobytes()}
        for name, a in arrays.items()
    }
    return msgpack.packb(plain)


def arrays_from_bytes(data: bytes) -> dict[str, np.ndarray | None]:
    """The inverse of `arrays_to_bytes`; raises BadSample where it can't be."""
    stored = _unpacked(data)
    if stored is None:
        raise BadSample("damaged record", "column")
    try:
        return {
            name: np.frombuffer(a["data"], _dtype(a["dtype"])).reshape(a["shape"])
            for name, a in stored.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadSample("damaged record", "column") from None


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """manifest.json of a packed set.

    Raises:
      UserError: no such file, no manifest, or one of a version that is not known.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(
            f"arrayrecord={str(folder)!r} has no {MANIFEST}; give a folder that `t2i data pack` "
            "wrote."
        )
    manifest = json_file.read(path, "arrayrecord", "pack the set again")
    if damaged := _damaged(manifest):
        raise UserError(
            f"arrayrecord={str(folder)!r} has a damaged {MANIFEST} ({damaged} is missing, or not "
            "what it can be); pack the set again."
        )
    if manifest["version"] != VERSION:
        raise UserError(
            f"arrayrecord={str(folder)!r} has version {manifest['version']}, known is {VERSION}; "
            "pack the set again."
        )
    return manifest


def write_manifest(
    folder: pathlib.Path, manifest: Mapping[str, Any], named: str | None = None
) -> None:
    """Replaces manifest.json whole, so that it is never half written.

    Args:
      named: what the folder was given as, for sentences; None: packed=FOLDER.

    Raises:
      UserError: it can't be written.
    """
    try:
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        named = named or f"packed={str(folder)!r}"
        raise UserError(
            f"{named} can't be written to ({error.strerror}); make room for it."
        ) from None


def check_column(folder: pathlib.Path, manifest: Mapping[str, Any], name: str) -> _Shards:
    """The files of a column, which are there and hold as many rows as there are records.

    Raises:
      UserError: what is missing or of another size.
    """
    try:
        column = _Shards(folder, manifest["columns"][name]["shards"])
    except UserError as error:
        told = str(error).removesuffix(".")
        raise UserError(f"{told}, or encode {name} anew with --replace.") from None
    count = sum(shard["count"] for shard in manifest["shards"])
    if len(column) != count:
        raise UserError(
            f"arrayrecord={str(folder)!r} has {count} records and {len(column)} of {name}; encode "
            "them again with --replace."
        )
    return column


class _Shards:
    """The records of several files in a row.

    Files are opened when they are first read, in each process.
    """

    def __init__(self, folder, shards):
        self._paths = [folder / shard["file"] for shard in shards]
        for path, shard in zip(self._paths, shards):
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                state = (
                    "is missing"
                    if size is None
                    else f"has {size} bytes instead of {shard['bytes']}"
                )
                raise UserError(f"arrayrecord={str(folder)!r}: {path.name} {state}; copy it again.")
        self._starts = [0, *itertools.accumulate(shard["count"] for shard in shards)]
        self._readers, self._lock = {}, threading.Lock()
        for number, (path, shard) in enumerate(zip(self._paths, shards)):
            held = self._held(number)
            if held != shard["count"] and (held or shard["count"] > shard["bytes"]):
                raise UserError(
                    f"arrayrecord={str(folder)!r}: {path.name} holds {held} records, and "
                    f"{MANIFEST} says {shard['count']}; copy the set again."
                )

    def __len__(self):
        return self._starts[-1]

    def read(self, index):
        """The bytes of a record and its name; or BadSample."""
        number, name = self._place(index), self.name(index)
        try:
            return self._reader(number).read([index - self._starts[number]])[0], name
        except (RuntimeError, ValueError, IndexError):  # what ArrayRecord raises for damaged chunks
            raise BadSample("damaged record", name) from None

    def name(self, index):
        """The name of a record: its file, and its number there."""
        number = self._place(index)
        return f"{self._paths[number].name}[{index - self._starts[number]}]"

    def _place(self, index):
        """The number of the file that holds a record."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bisect.bisect_right(self._starts, index) - 1

    def _held(self, number):
        """The number of records in a file; 0 for a damaged one, which is told record by record."""
        try:
            return self._reader(number).num_records()
        except (RuntimeError, ValueError):
            return 0

    def _reader(self, number):
        with self._lock:
            if number not in self._readers:
                self._readers[number] = ArrayRecordReader(str(self._paths[number]), _READ)
            return self._readers[number]

    def __getstate__(self):
        return {"_paths": self._paths, "_starts": self._starts}

    def __setstate__(self, state):
        self.__dict__.update(state, _readers={}, _lock=threading.Lock())


def _damaged(manifest):
    """The first field of a manifest that reading needs and that it has not, or not as it can be;
    None where there is no such field.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return "format"
    columns = manifest.get("columns")
    is_right = {
        "version": "version" in manifest,
        "source": isinstance(manifest.get("source"), str),
        "captions": "captions" in manifest,
        "count": _is_count(manifest.get("count")),
        "shards": _are_shards(manifest.get("shards")),
        "columns": isinstance(columns, dict),
    }
    for name, about in columns.items() if isinstance(columns, dict) else ():
        column = about if isinstance(about, dict) else {}
        is_right[f"columns.{name}.shards"] = _are_shards(column.get("shards"))
        for field in _NUMBERS:
            is_right[f"columns.{name}.{field}"] = _is_count(column.get(field, 1))
    return next((field for field, right in is_right.items() if not right), None)


def _are_shards(value):
    return isinstance(value, list) and all(
        isinstance(shard, dict)
        and isinstance(shard.get("file"), str)
        and _is_count(shard.get("count"))
        and _is_count(shard.get("bytes"))
        for shard in value
    )


def _is_count(value):
    return type(value) is int and value >= 0


def _unpacked(data):
    """The dict that msgpack holds, or None."""
    try:
        found = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _dtype(name):
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
