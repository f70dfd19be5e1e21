"""One training at a time in a folder, and what a dead one left holds up nobody."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from t2i_jax.cluster import lock
from t2i_jax.errors import UserError

_HOLD = """
import pathlib, sys, time
from t2i_jax.cluster import lock
from t2i_jax.errors import UserError
try:
    with lock.held(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except UserError as error:
    print(f"refused {error}", flush=True)
"""


def _hold(workdir, seconds):
    command = [sys.executable, "-c", _HOLD, str(workdir), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_many_that_start_at_once_one_holds_and_the_others_name_it(tmp_path):
    workdir = tmp_path / "run"
    many = [_hold(workdir, 60) for _ in range(4)]
    said = [process.stdout.readline() for process in many]
    holder = many[said.index("held\n")]
    assert said.count("held\n") == 1
    for text in said:
        assert text == "held\n" or f"is in use by process {holder.pid} on " in text
    in_use = f"workdir='{workdir}' is in use by process {holder.pid}"
    with pytest.raises(UserError, match=in_use), lock.held(workdir):
        pass
    holder.send_signal(signal.SIGKILL)  # not yet waited for: a zombie holds nothing
    while pathlib.Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    begin = time.monotonic()
    with lock.held(workdir), lock.held(workdir):
        assert json.loads((workdir / "lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - begin < 1
    assert not (workdir / "lock").exists()
    for process in many:
        process.communicate()


def test_another_thread_is_another_holder_and_an_error_gives_the_folder_free(tmp_path):
    errors = []

    def other():
        try:
            with lock.held(tmp_path):
                pass
        except UserError as error:
            errors.append(error)

    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        raise ZeroDivisionError
    assert len(errors) == 1 and f"process {os.getpid()} on " in str(errors[0])
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize("holds", [lock.held, lambda out: lock.writing("out", out)])
@pytest.mark.parametrize("full", [None, "pwrite", "fsync"])
def test_of_folders_that_were_made_for_nothing_none_is_left(tmp_path, monkeypatch, holds, full):
    def refused(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted(*_):
        raise KeyboardInterrupt

    if full:
        monkeypatch.setattr(lock.os, full, refused)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError), holds(tmp_path / "there" / "a" / "b" / "c"):
        raise UserError("what is given does not fit")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    monkeypatch.undo()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(lock.threading.Thread, "start", interrupted)
        with holds(tmp_path / "there" / "a"):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with holds(tmp_path / "there" / "a" / "b"):
        (tmp_path / "there" / "a" / "kept").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "a", "kept"}


@pytest.mark.parametrize("possible", [True, False], ids=["fsync", "no fsync"])
def test_every_beat_is_flushed_as_a_bucket_shows_an_open_file_only_then(
    tmp_path, monkeypatch, possible
):
    seen = []

    def fsync(handle):
        seen.append(json.loads(os.pread(handle, 10_000, 0)))
        if not possible:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(lock.os, "fsync", fsync)
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    with lock.held(tmp_path):
        end = time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert [int(said["beat"]) for said in seen[:3]] == [0, 1, 2]
    assert {said["pid"] for said in seen} == {os.getpid()}


def _left(workdir, **changed):
    """A lock as one of this machine's processes would leave it, with some of it changed."""
    with lock.held(workdir):
        said = json.loads((workdir / "lock").read_text())
    (workdir / "lock").write_text(json.dumps({**said, **changed}))


def test_a_process_number_that_was_given_to_another_process_holds_nothing(tmp_path):
    _left(tmp_path, pid=1, started=-5)
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": -1, "host": "a"}'])
def test_a_damaged_lock_holds_nothing(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    with lock.held(tmp_path):
        pass


def test_a_pipe_of_that_name_holds_nothing(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with lock.held(tmp_path):
        assert (tmp_path / "lock").is_file()


def test_a_folder_of_that_name_is_set_aside(tmp_path, capsys):
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "mine").write_text("keep")
    with lock.held(tmp_path):
        pass
    assert (tmp_path / "lock.0" / "mine").read_text() == "keep"
    assert "is now 'lock.0'" in capsys.readouterr().err


def test_a_holder_of_another_machine_is_watched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_SILENCE", 1.0)
    _left(tmp_path, host="elsewhere", machine="another", beat="000000000001")
    over = threading.Event()

    def count():
        said, beat = json.loads((tmp_path / "lock").read_text()), 1
        while not over.wait(0.05):
            beat += 1
            (tmp_path / "lock").write_text(json.dumps({**said, "beat": f"{beat:012}"}))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with pytest.raises(UserError, match="on elsewhere"), lock.held(tmp_path):
            pass
    finally:
        over.set()
        thread.join()
    with lock.held(tmp_path):  # it counts no more
        pass
    assert "waiting up to" in capsys.readouterr().err
