"""Digests of a checkpoint's files, which tell at restore whether they are what was written.

Each process writes those of its own files into the step's folder, once the save is complete. They
are CRC-32 of blocks of the files: a changed bit is always found, and reading is as fast as the
disk.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator

from t2i_jax.files import replacing

_FILE = "digests.{}.json"  # by the number of the process
_STEP, _FILES = "step", "files"
_BLOCK = 2**25  # bytes
_PIECE = 2**20  # bytes that are read at once
_OF_PROCESS = re.compile(r"(?:ocdbt\.)?process_(\d+)")
_SWITCH = "T2I_DIGESTS"  # "off": neither written nor checked


class Damaged(ValueError):
    """A file of a checkpoint is not what was written; says which and how."""


def write(step: pathlib.Path, process: int) -> None:
    """Writes the digests of a process's files of a complete step, in its folder.

    Files that belong to no process are those of process 0.
    """
    if _is_off():
        return
    names = [name for name in _names(step) if _owner(name) == process]
    sizes = {name: (step / name).stat().st_size for name in names}
    blocks = dict(_digested(step, _blocks(sizes)))
    files = {
        name: [size, [blocks[block] for block in _blocks({name: size})]]
        for name, size in sizes.items()
    }
    body = json.dumps({_STEP: step.name, _FILES: files}, sort_keys=True).encode()
    with replacing(step / _FILE.format(process)) as path:
        path.write_bytes(body + b"\n%08x" % zlib.crc32(body))


def check(step: pathlib.Path, items: Iterable[str] = (), share: tuple[int, int] = (0, 1)) -> None:
    """Compares the files of a step with their digests, and its name with that of the folder that
    was written; a step without any passes.

    Args:
      items: folders of the step whose files are compared, beside those of the step itself; none:
        all.
      share: (process, count): every `count`-th block only, for processes that share the work.

    Raises:
      Damaged: a file is missing or another than was written, the step has the name of another one,
        or the digests are damaged.
    """
    if _is_off():
        return
    items, wanted = set(items), {}
    for path in sorted(step.glob(_FILE.format("*"))):
        files = _read(path)
        for name, (size, digests) in files.items():
            item = name.partition("/")
            if items and item[1] and item[0] not in items:
                continue
            _check_size(step, name, size)
            wanted.update(zip(_blocks({name: size}), digests, strict=True))
    mine = sorted(wanted)[share[0] :: share[1]]
    for block, digest in _digested(step, mine):
        if digest != wanted[block]:
            raise Damaged(f"{block[0]} is not what was written, from byte {block[1]} on")


def check_file(step: pathlib.Path, name: str) -> None:
    """Compares one file of a step with its digest; one without a digest passes.

    Raises:
      Damaged: as `check`.
    """
    listed = step / _FILE.format(_owner(name))
    if _is_off() or not listed.is_file():
        return
    if entry := _read(listed).get(name):
        size, wanted = entry
        _check_size(step, name, size)
        if [digest for _, digest in _digested(step, _blocks({name: size}))] != wanted:
            raise Damaged(f"{name} is not what was written")


def are_in(step: pathlib.Path) -> bool:
    """Whether a step has digests, and they are compared."""
    return not _is_off() and any(step.glob(_FILE.format("*")))


def _is_off():
    return os.environ.get(_SWITCH, "").lower() in ("off", "0", "no", "false")


def _names(step):
    """The step's files by their names in it, without digests and what is still written."""
    for path in sorted(step.rglob("*")):
        name = path.relative_to(step).as_posix()
        if path.is_file() and not re.fullmatch(r"(partial-)?digests\.\d+\.json", name):
            yield name


def _owner(name):
    found = [_OF_PROCESS.fullmatch(part) for part in name.split("/")]
    return next((int(one[1]) for one in found if one), 0)


def _blocks(sizes) -> Iterator[tuple[str, int, int]]:
    """The blocks of files: (file, offset, size) of each."""
    for name, size in sizes.items():
        for offset in range(0, size, _BLOCK):
            yield name, offset, min(_BLOCK, size - offset)


def _digested(step, blocks):
    """The digests of blocks, ((file, offset, size), digest) of each, in threads: neither reading
    nor computing holds up another.
    """

    def digest(block):
        name, offset, size = block
        try:
            with open(step / name, "rb") as file:
                return block, _crc(file.fileno(), offset, size)
        except OSError as error:
            raise Damaged(f"{name} can't be read ({error.strerror})") from None

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(digest, list(blocks))


def _crc(handle, offset, size):
    crc = 0
    while size > 0:
        piece = os.pread(handle, min(_PIECE, size), offset)
        if not piece:
            return None  # shorter than it was
        crc = zlib.crc32(piece, crc)
        offset, size = offset + len(piece), size - len(piece)
    return crc


def _read(path):
    """The files that are told in a step's folder: by name the size and the digests of blocks."""
    try:
        body, _, crc = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise Damaged(f"{path.name} can't be read ({error.strerror})") from None
    if b"%08x" % zlib.crc32(body) != crc:
        raise Damaged(f"{path.name} is not what was written")
    told = json.loads(body)
    if _FILES not in told:  # those of before were the files alone
        return told
    if told[_STEP] != path.parent.name:
        raise Damaged(f"it holds step {told[_STEP]}, under another name")
    return told[_FILES]


def _check_size(step, name, size):
    try:
        there = (step / name).stat().st_size
    except OSError as error:
        raise Damaged(f"{name} can't be read ({error.strerror})") from None
    if there != size:
        raise Damaged(f"{name} has {there} bytes, not the {size} that were written")
