"""WebDataset shards: tar files whose members 0001.jpg, 0001.txt, ... of one name are one sample."""

from __future__ import annotations

import fnmatch
import glob
import os
import pathlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from t2i_jax import paths
from t2i_jax.data import archive
from t2i_jax.data import caption as captions
from t2i_jax.data.folder import LEFTOVER, is_leftover
from t2i_jax.data.image_file import ENDINGS, MOST_BYTES, ImageFiles
from t2i_jax.data.ledger import Ledger
from t2i_jax.data.source import BadSample
from t2i_jax.data.table import spelled
from t2i_jax.errors import UserError
from t2i_jax.files import open_regular
from t2i_jax.terminal import say
from t2i_jax.words import counted

_MOST_SHARDS = 1_000_000  # most shards of one range
_MOST_PATTERNS = 1000  # most patterns that alternatives stand for
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


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
    names agree up to the first dot after the folder; the caption is in .txt, .caption or .json.
    Members such as img.0001.png and img.0002.png, which have no image of that name among them, are
    samples up to their last dot. A name that comes twice in a file is two samples, and told. What
    cannot be read of a damaged file counts as one bad sample; archives that lie one behind another
    in a file are all read, and one without its end mark is told.

    Args:
      pattern: which files: "shards/*.tar", or with ranges of numbers and alternatives,
        "shards/{train,val}-{00000..00099}.tar".

    Raises:
      UserError: no such file, a file that is no tar archive or a compressed one, no images.
    """

    def __init__(self, pattern: str):
        self._passed_over = Ledger()
        pattern = paths.local("webdataset", pattern)
        self.shards = _shards(pattern, self._passed_over)
        if not self.shards:
            raise UserError(
                f"webdataset={pattern!r} matches no file; give tar files such as shards/*.tar."
            )
        self._samples = [
            sample
            for number, path in enumerate(self.shards)
            for sample in _index(number, path, self._passed_over)
        ]
        if not any(sample.image for sample in self._samples):
            seen = "; ".join(self._passed_over.names[:3])
            raise UserError(
                f"webdataset={pattern!r} holds no images{f' (there are {seen})' if seen else ''}; "
                f"they end in {', '.join(ENDINGS)}."
            )

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def passed_over(self) -> Ledger:
        """Members that are read as no part of a sample, shards that are missing, and names that
        come twice.
        """
        return self._passed_over

    @property
    def image_files(self) -> Iterable[pathlib.Path]:
        """The archives."""
        return map(pathlib.Path, self.shards)

    def file(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image and its name, as shard.tar/name.jpg; or `BadSample`."""
        sample = self._samples[index]
        if sample.image is None:
            raise BadSample(sample.reason, self._name(sample))
        return self._read(sample, sample.image), self._name(sample, sample.image)

    def image_name(self, index: int) -> str:
        """The name of a record's image, as shard.tar/name.jpg."""
        sample = self._samples[index]
        return self._name(sample, sample.image)

    def caption(self, index: int) -> str:
        """The caption; or `BadSample`."""
        sample = self._samples[index]
        if sample.reason:
            raise BadSample(sample.reason, self._name(sample))
        if sample.text is None:
            raise BadSample("no caption", self._name(sample))
        name = self._name(sample, sample.text)
        if sample.text.size > captions.MOST_BYTES:
            raise BadSample("file too large", name)
        data = self._read(sample, sample.text)
        return captions.in_file(data, sample.text.ending, name, self.read_in_part)

    def _read(self, sample, part):
        name = self._name(sample, part)
        if part.size > MOST_BYTES:
            raise BadSample("file too large", name)
        try:
            with open_regular(self.shards[sample.shard]) as file:
                if os.fstat(file.fileno()).st_size < part.offset + part.size:
                    raise BadSample(archive.DAMAGED, name)
                file.seek(part.offset)
                return file.read(part.size)
        except OSError:
            raise BadSample("unreadable file", name) from None

    def _name(self, sample, part=None):
        name = pathlib.Path(self.shards[sample.shard]).name
        return f"{name}/{sample.key}{part.ending if part else ''}" if sample.key else name


class _Group:
    """The members of one name, up to the first dot."""

    def __init__(self, key):
        self.key = key
        self.parts: dict[str, _Part] = {}

    def has_image(self) -> bool:
        """Whether any member is an image."""
        return any(ending.endswith(ENDINGS) for ending in self.parts)

    def in_small_letters(self) -> tuple[str, str]:
        """The folder, and the name in small letters, both in the one spelling of names."""
        folder, _, stem = self.key.rpartition("/")
        return spelled(folder), spelled(stem).lower()

    def take_captions(self, other: _Group) -> None:
        """Moves captions of another group here, unless there is a caption of the same name here."""
        mine = {one.rpartition(".")[0] for one in self.parts if one.endswith(captions.ENDINGS)}
        for ending in list(other.parts):
            if ending.endswith(captions.ENDINGS) and ending.rpartition(".")[0] not in mine:
                self.parts[ending] = other.parts.pop(ending)

    def samples(self, shard, passed_over, where) -> Iterator[_Sample]:
        """The samples in them: one, or where none of them is an image of that name, one for each
        name up to the last dot.
        """
        image = next((ending for ending in ENDINGS if ending in self.parts), None)
        compound = [e for e in self.parts if e.count(".") > 1 and e.endswith(ENDINGS)]
        if image is None and compound:
            for ending in compound:
                stem, _, last = ending.rpartition(".")
                one = _Group(self.key + stem)
                one.parts = {
                    other.removeprefix(stem): part
                    for other, part in self.parts.items()
                    if other == ending or other.removeprefix(stem) in _texts("." + last)
                }
                yield from one.samples(shard, passed_over, where)
            return
        text = next((e for e in _texts(image or "") if e in self.parts), None)
        if image or text:
            found = self.parts.get(image), self.parts.get(text)
            yield _Sample(shard, self.key, *found, "" if image else "no image")
        for ending in self.parts:
            if ending not in (image, text):
                is_image = ending.endswith(ENDINGS)
                reason = f"{'image' if is_image else 'member'} beside another of its sample"
                if not image and not text:
                    reason = f"member that ends in {ending[:20] or 'nothing'}"
                passed_over.note(reason, f"{where}/{self.key}{ending}")


def _texts(image_ending):
    """Endings of the members that may hold a caption, best first."""
    behind = [image_ending + one for one in captions.ENDINGS] if image_ending else []
    return [*captions.ENDINGS, *behind]


def _index(number, path, passed_over):
    """The samples of one tar file."""
    where = pathlib.Path(path).name
    try:
        with open_regular(path) as file:
            members, ended = archive.members(file)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if os.path.isdir(path):
            raise UserError(
                f"webdataset={path!r} is a folder; name the tar files in it, such as "
                f"{os.path.join(path, '*.tar')}."
            ) from None
        raise UserError(
            f"webdataset shard {path!r} can't be read as a tar file ({error}); repair or remove "
            "it, and unpack .gz."
        ) from None
    groups = _groups(_files(members, where, passed_over), where, passed_over)
    read = f"it is read up to there, {counted(len(groups), 'sample')}"
    if ended == archive.DAMAGED:
        say(f"{path} is damaged; {read}")
    elif ended:
        say(f"{path}: {ended}; {read}")
        passed_over.note(ended, where)
    _share_captions(groups)
    samples = [one for group in groups for one in group.samples(number, passed_over, where)]
    return (
        [*samples, _Sample(number, "", None, None, ended)] if ended == archive.DAMAGED else samples
    )


def _files(members, where, passed_over):
    """The members of an archive that are files; the others that are no folders are noted."""
    files: list[tarfile.TarInfo] = []
    for member in members:
        if member.isfile() and not member.issparse():
            files.append(member)
        elif not member.isdir():
            passed_over.note("member that is no file", f"{where}/{member.name}")
    return files


def _groups(files, where, passed_over):
    """The members of an archive by name, without what other programs left."""
    groups: list[_Group] = []
    latest: dict[str, _Group] = {}
    above = _folders_above(files)
    for member in files:
        said = f"{where}/{member.name}"
        *folders, own = _parts(member.name)
        if any(map(is_leftover, [*folders[above:], own])):
            passed_over.note(LEFTOVER, said)
            continue
        key, ending = _split(member.name)
        if key not in latest or ending in latest[key].parts:
            if key in latest:
                passed_over.note("name twice in an archive, read as two", said)
            latest[key] = _Group(key)
            groups.append(latest[key])
        latest[key].parts[ending] = _Part(ending, member.offset_data, member.size)
    return groups


def _folders_above(files):
    """How many folders the names of an archive begin with that all of its members share: they are
    where it was made, maybe in a hidden folder, and say nothing of what is in it.
    """
    names = [parts for parts in (_parts(one.name) for one in files) if not is_leftover(parts[-1])]
    return len(os.path.commonprefix([parts[:-1] for parts in names]))


def _split(name):
    """ "a/b.c.JPG" -> "a/b", ".c.jpg"."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, dot + ending.lower()


def _parts(name):
    """The folders of a member and its own name."""
    return [part for part in name.split("/") if part not in (".", "..")] or [name]


def _share_captions(groups):
    """Captions that have no image of their own spelling go to one with other capital letters."""
    alone = [group for group in groups if not group.has_image()]
    by_name: dict[tuple[str, str], list[_Group]] = {}
    for group in groups if alone else ():
        if group.has_image():
            by_name.setdefault(group.in_small_letters(), []).append(group)
    for group in alone:
        for other in by_name.get(group.in_small_letters(), ()):
            other.take_captions(group)


def _shards(pattern, passed_over):
    """The files of a pattern; numbers of its ranges that are missing among them are noted.

    The folders are listed, and no name is tried that is not there. A pattern that is the name of a
    file means just that, and so does its folder.
    """
    if os.path.isfile(pattern):
        return [pattern]
    found: set[str] = set()
    for one in _alternatives(pattern):
        folder, name = os.path.split(one)
        ranges = _RANGE.findall(one)
        _check_ranges(one, ranges)
        if os.path.isdir(folder):
            there = glob.glob(os.path.join(glob.escape(folder), _wide(name)), recursive=True)
            fits = {path for path in there if _in_ranges(os.path.basename(path), name)}
        else:
            fits = {path for path in glob.glob(_wide(one), recursive=True) if _in_ranges(path, one)}
        found |= fits
        count = 1
        for first, last in ranges:
            count *= int(last) - int(first) + 1
        if ranges and fits and not glob.has_magic(name) and count > len(fits):
            reason = f"shard of {os.path.basename(one)} that is missing"
            passed_over.note(reason, _first_missing(one, fits), count - len(fits))
    return sorted(found)


def _wide(pattern):
    """A pattern of `glob` for at least the files of a pattern with ranges."""
    return "[0-9]*".join(_RANGE.split(pattern)[::3])


def _check_ranges(pattern, ranges):
    for first, last in ranges:
        if not 0 <= int(last) - int(first) < _MOST_SHARDS:
            raise UserError(
                f"webdataset={pattern!r} has the range {{{first}..{last}}}; give one such as "
                "{00000..00099}."
            )


def _in_ranges(path, pattern):
    """Whether the numbers of a path are those of a pattern's ranges."""
    ranges = _RANGE.findall(pattern)
    if not ranges:
        return True
    pieces = [fnmatch.translate(piece)[4:-3] for piece in _RANGE.split(pattern)[::3]]
    match = re.fullmatch(r"(\d{1,18})".join(pieces), path, re.DOTALL)
    return match is not None and all(
        int(first) <= int(number) <= int(last) and str(int(number)).zfill(len(first)) == number
        for number, (first, last) in zip(match.groups(), ranges)
    )


def _first_missing(pattern, found):
    """The name of a shard that is missing, counted from the first."""
    ranges = _RANGE.findall(pattern)
    pieces = _RANGE.split(pattern)[::3]
    for step in range(len(found) + 1):
        numbers = []
        for first, last in reversed(ranges):
            step, number = divmod(step, int(last) - int(first) + 1)
            numbers.append(str(int(first) + number).zfill(len(first)))
        name = pieces[0]
        for number, piece in zip(reversed(numbers), pieces[1:]):
            name += number + piece
        if name not in found:
            return name
    return pattern


def _alternatives(pattern):
    """The patterns that alternatives such as {train,val} stand for."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    patterns: list[str] = []
    for one in found.group(1).split(","):
        patterns += _alternatives(before + one + after)
        if len(patterns) > _MOST_PATTERNS:
            raise UserError(
                f"webdataset={pattern!r} stands for more than {_MOST_PATTERNS} patterns; give "
                "fewer alternatives."
            )
    return patterns
