"""WebDataset shards: tar files whose members 0001.jpg, 0001.txt, ... of one name are one sample."""

from __future__ import annotations

import glob
import json
import logging
import os
import pathlib
import re
import tarfile
from typing import NamedTuple

from t2i_jax import paths
from t2i_jax.data.image_file import ENDINGS, ImageFiles
from t2i_jax.data.source import BadSample, clean_caption
from t2i_jax.errors import UserError

_TEXTS = (".txt", ".caption", ".json")  # where a caption stands, the first that is there
_KEYS = ("caption", "text")  # of a .json
_MOST_SHARDS = 1_000_000  # of one range
_log = logging.getLogger(__name__)


class _Part(NamedTuple):
    """A member of a tar file: where its bytes lie."""

    ending: str
    offset: int
    size: int


class _Sample(NamedTuple):
    """One sample; without an image it is there to be counted as bad, for `reason`."""

    shard: int
    key: str
    image: _Part | None
    text: _Part | None
    reason: str = ""


class WebDatasetSource(ImageFiles):
    """Random access to the samples of tar files, in the order in which they lie there.

    The files are read through once, for where their members are. A sample is all members whose
    names agree up to the first dot after the folder; the caption is that of .txt, .caption, or
    "caption" or "text" of .json. What cannot be read of a damaged file counts as one bad sample.

    Args:
      pattern: which files: "shards/*.tar", or with a range of numbers, "shards/{00000..00099}.tar".

    Raises:
      UserError: no such file, a file that is no tar archive or a compressed one, no images.
    """

    def __init__(self, pattern: str):
        pattern = paths.local("webdataset", pattern)
        self.shards = sorted({path for one in _expanded(pattern) for path in _matching(one)})
        if not self.shards:
            raise UserError(
                f"webdataset={pattern!r} matches no file; give tar files such as shards/*.tar."
            )
        self._samples = [
            sample for number, path in enumerate(self.shards) for sample in _index(number, path)
        ]
        if not any(sample.image for sample in self._samples):
            raise UserError(
                f"webdataset={pattern!r} holds no images; they end in {', '.join(ENDINGS)}."
            )

    def __len__(self) -> int:
        return len(self._samples)

    def file(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image and its name, as shard.tar/name.jpg; or `BadSample`."""
        sample = self._samples[index]
        if sample.image is None:
            raise BadSample(sample.reason, self._name(sample))
        return self._read(sample, sample.image), self._name(sample, sample.image)

    def caption(self, index: int) -> str:
        """The caption; or `BadSample`."""
        sample = self._samples[index]
        if sample.reason:
            raise BadSample(sample.reason, self._name(sample))
        if sample.text is None:
            raise BadSample("no caption", self._name(sample))
        text, name = self._read(sample, sample.text), self._name(sample, sample.text)
        return clean_caption(
            _from_json(text, name) if sample.text.ending == ".json" else text, name
        )

    def _read(self, sample, part):
        try:
            with open(self.shards[sample.shard], "rb") as file:
                if os.fstat(file.fileno()).st_size < part.offset + part.size:
                    raise BadSample("truncated archive", self._name(sample, part))
                file.seek(part.offset)
                return file.read(part.size)
        except OSError:
            raise BadSample("unreadable file", self._name(sample, part)) from None

    def _name(self, sample, part=None):
        name = pathlib.Path(self.shards[sample.shard]).name
        return f"{name}/{sample.key}{part.ending if part else ''}" if sample.key else name


def _index(number, path):
    """The samples of one tar file."""
    parts: dict[str, dict[str, _Part]] = {}
    reason = ""
    try:
        with tarfile.open(path, "r:") as archive:
            try:
                for member in archive:
                    if member.isfile() and not member.issparse():
                        key, ending = _split(member.name)
                        parts.setdefault(key, {})[ending] = _Part(
                            ending, member.offset_data, member.size
                        )
            except (tarfile.TarError, OSError, ValueError, EOFError):
                reason = "truncated archive"
                _log.warning("%s is damaged; it is read up to there, %d samples", path, len(parts))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"webdataset shard {path!r} can't be read as a tar file ({error}); repair or remove "
            "it, and unpack .gz."
        ) from None
    samples = []
    for key, found in parts.items():
        image = next((found[ending] for ending in ENDINGS if ending in found), None)
        text = next((found[ending] for ending in _TEXTS if ending in found), None)
        if image or text:
            samples.append(_Sample(number, key, image, text, "" if image else "no image"))
    return [*samples, _Sample(number, "", None, None, reason)] if reason else samples


def _split(name):
    """ "a/b.c.JPG" -> "a/b", ".c.jpg"."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, dot + ending.lower()


def _from_json(text, name):
    try:
        values = json.loads(text)
    except UnicodeDecodeError:
        raise BadSample("caption is not UTF-8", name) from None
    except (ValueError, RecursionError):
        raise BadSample("caption is not JSON", name) from None
    if not isinstance(values, dict):
        raise BadSample("no caption", name)
    return next((values[key] for key in _KEYS if isinstance(values.get(key), str)), None)


def _matching(pattern):
    """The files of a pattern; one that is the name of a file or a folder means just that."""
    folder, name = os.path.split(pattern)
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(folder):
        pattern = os.path.join(glob.escape(folder), name)
    return glob.glob(pattern, recursive=True)


def _expanded(pattern):
    """A pattern for each number of the first range of numbers, "{00..11}", and so on for the ranges
    after it.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    if not 0 <= int(last) - int(first) < _MOST_SHARDS:
        raise UserError(
            f"webdataset={pattern!r} has the range {found.group()}; give one such as "
            "{00000..00099}."
        )
    numbers = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    return [
        one
        for i in numbers
        for one in _expanded(pattern[: found.start()] + i + pattern[found.end() :])
    ]
