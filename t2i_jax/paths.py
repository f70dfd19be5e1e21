"""Paths as people give them: checked once, where they come in, before anything is made or read."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import urllib.parse

from t2i_jax import values
from t2i_jax.errors import UserError

Given = str | os.PathLike

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib makes gs:/b of gs://b
_HOST = re.compile("^[^:]*:(//[^/]*)?")  # what an address of a file has before the path
_NAME, _PATH = 255, 4096  # bytes, where the file system does not say
_BELOW = 400  # bytes of the longest path below a run's folder, about
_SHOWN = 100  # letters of a path in a sentence


def local(field: str, path: Given) -> str:
    """A path, or a pattern of paths, with `~` replaced by the home folder.

    Args:
      field: what the path was given as, for the sentence.

    Raises:
      UserError: it is no path, is empty, names a remote place (`gs://...`) or is an address
        (`file:///...`), holds a null character, or begins with the home of an unknown user.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise UserError(f"{field}={values.shown(path)} is no path; give a text or a pathlib.Path.")
    text = os.fsdecode(path)
    named = f"{field}={shown(text)}"
    if not text:
        raise UserError(f"{named} is empty; give a path.")
    if "\0" in text:
        raise UserError(f"{named} holds a null character, as no path does; give another one.")
    if remote := _SCHEME.match(text):
        if remote[1].lower() == "file":
            place = "/" + urllib.parse.unquote(_HOST.sub("", text)).lstrip("/")
            raise UserError(f"{named} is the address of a file and no path; give {shown(place)}.")
        raise UserError(
            f"{named} names a remote place, and {remote[1]}: is not supported; give a folder or "
            "file of this machine, or one that is mounted here."
        )
    return _at_home(named, text)


def given(field: str, path: Given) -> pathlib.Path:
    """The path with `~` replaced by the home folder; whether something is there is left open.

    Args:
      field: what the path was given as, for the sentence.

    Raises:
      UserError: as `local`; or it is longer than the file system allows, or leads through a file, a
        circle of links or a folder that may not be entered.
    """
    text, named = local(field, path), f"{field}={shown(path)}"
    _check_length(named, text)
    try:
        os.stat(text)
    except UnicodeEncodeError:
        raise UserError(f"{named} can't be the name of a file; give another one.") from None
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise UserError(_unreachable(named, text, error)) from None
    return pathlib.Path(text)


def folder(field: str, path: Given) -> pathlib.Path:
    """The path of a folder that is there or can be made, checked by `given`; nothing is made.

    Raises:
      UserError: as `given` and `check_link`; or something else is there, its path is not UTF-8 or
        has a backslash, or nothing can be written where it is or would be.
    """
    found = given(field, path)
    named = f"{field}={shown(path)}"
    _check_written(named, found)
    if "\\" in os.path.realpath(found):  # what writes checkpoints takes it for a slash
        raise UserError(f"{named} has a backslash in its path; name a folder without one.")
    if len(os.fsencode(os.path.abspath(found))) > _PATH - _BELOW:
        raise UserError(
            f"{named} has so long a path that nothing fits below it; give a shorter one."
        )
    if found.exists() and not found.is_dir():
        raise UserError(f"{named} is not a folder; name a new one, or one that is there.")
    check_link(field, found)
    return found


def new(field: str, path: Given) -> pathlib.Path:
    """The path of a file or a folder that is to be written, checked by `given`; nothing is made.

    Whether it may replace something is not asked.

    Raises:
      UserError: as `given`; or its name is not UTF-8, or nothing can be written where it would be.
    """
    found = given(field, path)
    _check_written(f"{field}={shown(path)}", found)
    return found


def new_file(field: str, path: Given) -> pathlib.Path:
    """The path of a file that is to be written, checked by `new`; it may replace one, and the
    folders above it need not be there.

    Raises:
      UserError: as `new`; or a folder is there, or a file that may not be written.
    """
    found, named = new(field, path), f"{field}={shown(path)}"
    if found.is_dir():
        raise UserError(f"{named} is a folder; name a file in it.")
    if found.exists() and not os.access(found, os.W_OK):
        raise UserError(f"{named} is there and can't be written; name another file.")
    return found


def new_folder(field: str, path: Given) -> pathlib.Path:
    """The path of a folder that takes its place when all of it is written, checked by `new`: where
    nothing is, or an empty folder. Of a link that place is the one to which it leads, its
    `os.path.realpath`.

    Raises:
      UserError: as `new`; or something is there, or it is a mount point, whose place no folder can
        take.
    """
    found, named = new(field, path), f"{field}={shown(path)}"
    home = pathlib.Path(os.path.realpath(found))
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UserError(f"{named} exists and is not empty; name a new folder.")
    if home in _mount_points() or os.path.ismount(home):
        raise UserError(
            f"{named} is a mount point, whose place no folder can take; name a new one in it, as "
            f"{shown(found / 'new')}."
        )
    _check_written(named, home.parent if home.exists() else home)
    return found


def make(field: str, folder: pathlib.Path) -> None:
    """Makes a folder and those above it, unless it is there.

    Raises:
      UserError: the file system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        check_link(field, folder)
        if folder.is_file():
            raise UserError(
                f"{field}={shown(folder)} is a file where a folder belongs; move the file away, or "
                "name another folder."
            ) from None
        raise UserError(
            f"{field}={shown(folder)} can't be made ({error.strerror}); name another folder."
        ) from None


def check_link(field: str, path: pathlib.Path) -> None:
    """Refuses a path that is, or leads through, a link to what is not there: as of a disk that is
    not mounted.

    Raises:
      UserError: names the link, and where it leads.
    """
    for one in (path, *path.parents):
        if one.is_symlink() and not one.exists():
            raise UserError(
                f"{field}={shown(one)} is a link to {shown(os.path.realpath(one))}, which is not "
                "there; mount or restore what it leads to, or name another folder."
            )


def shown(path: Given) -> str:
    """A path in a sentence: quoted, on one line, its middle left out when it is long."""
    text = os.fsdecode(path)
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"
    return repr(text)


def _at_home(named, text):
    if not text.startswith("~"):
        return text
    full = os.path.expanduser(text)
    if full.startswith("~"):
        raise UserError(
            f"{named} begins with the home of a user who is not known here; give the full path."
        )
    return full


def _check_length(named, text):
    longest = max(len(os.fsencode(part)) for part in text.split("/")) if _encodes(text) else 0
    if longest > _NAME:
        raise UserError(
            f"{named} has a name of {longest} bytes in it, and file systems allow {_NAME}; give a "
            "shorter one."
        )
    if _encodes(text) and len(os.fsencode(os.path.abspath(text))) >= _PATH:
        raise UserError(f"{named} is longer than {_PATH} bytes; give a shorter path.")


def _encodes(text):
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _unreachable(named, text, error):
    if error.errno == errno.ENOTDIR:
        return f"{named} leads through {_file_on_the_way(text)!r}, a file; name another place."
    return f"{named} can't be reached ({error.strerror}); give another path."


def _file_on_the_way(text):
    return next(
        (str(one) for one in reversed(pathlib.Path(text).parents) if os.path.isfile(one)), text
    )


def _mount_points():
    """The mount points that Linux lists, also where a folder of the same disk is mounted; else
    none.
    """
    try:
        lines = pathlib.Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    told = (line.split()[4].decode("unicode_escape").encode("latin-1") for line in lines)
    return {pathlib.Path(os.fsdecode(place)) for place in told}


def _check_written(named, path):
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{named} is not UTF-8; give another name.") from None
    there = pathlib.Path(os.path.abspath(path))
    while not os.path.lexists(there):
        there = there.parent
    if there != pathlib.Path(os.path.abspath(path)):
        if not there.is_dir():
            raise UserError(f"{named} lies below {str(there)!r}, no folder; name another place.")
    elif not there.is_dir():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{named}: nothing can be written into {str(there)!r}; name another place.")
