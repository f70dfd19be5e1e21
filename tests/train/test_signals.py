"""Signals in a burst, a closed terminal, and libraries that hold the main thread."""

import os
import signal
import subprocess
import sys
import time

import pytest

from .test_kill import _ROOT, _finished, _start, _wait_for

_RUN = """
import sys
from t2i_jax import terminal
from t2i_jax.cluster import processes
from t2i_jax.errors import Preempted
from t2i_jax.train.loop import TrainConfig, fit
from tests.train.toy import ToyBatches, ToyTask
terminal.forgive()
with processes.joined():
    config = TrainConfig(steps=6, batch_size=16, save_every=2, log_every=1)
    fit(ToyTask(), ToyBatches(), config, sys.argv[1])
print("done")
"""


def test_many_signals_within_a_moment_save_once_and_hangups_are_heard(tmp_path):
    process = _start(tmp_path)
    _wait_for(process, lambda: _finished(tmp_path))
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        if process.poll() is None:
            process.send_signal(number)
        time.sleep(0.02)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said[-2000:]
    assert said.count("saving after this step") == 1


@pytest.mark.parametrize("where", ["/dev/full", "pipe", "closed"])
def test_a_terminal_that_takes_nothing_costs_the_lines_alone(tmp_path, where):
    command = [sys.executable, "-c", _RUN, str(tmp_path / "run")]
    if where == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, cwd=_ROOT, stdout=writing, stderr=writing, check=False)
        os.close(writing)
    elif where == "closed":
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], cwd=_ROOT, check=False
        )
    else:
        with open(where, "w") as full:
            done = subprocess.run(command, cwd=_ROOT, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert max(_finished(tmp_path / "run")) == 6
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6 and all(line.startswith('{"step"') for line in lines)


# hashing holds the main thread as a compiler does, without an instruction of Python
_HELD = """
import hashlib, sys
from t2i_jax.cluster import processes
from t2i_jax.errors import Preempted
with processes.joined():
    print("held", flush=True)
    if sys.argv[1] == "trained":
        with processes.something_to_save():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize(
    ("state", "numbers", "status", "sentence"),
    [
        ("new", [signal.SIGTERM], 75, "stopped by SIGTERM, there was nothing to save"),
        ("trained", [signal.SIGINT, signal.SIGINT], 130, "interrupted again"),
    ],
)
def test_signals_are_answered_while_a_library_holds_the_main_thread(
    state, numbers, status, sentence
):
    command = [sys.executable, "-c", _HELD, state]
    process = subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    time.sleep(0.2)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    begin = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status and sentence in said
    assert "Traceback" not in said and time.monotonic() - begin < 30


def test_under_nohup_a_hangup_stays_ignored(tmp_path):
    code = """
import signal
from t2i_jax.cluster import signals
with signals.handled(print):
    print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
"""
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", code],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"


_IN_A_FINALIZER = """
import contextlib, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore them
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from t2i_jax.cli.main import main
from t2i_jax.cluster import processes

class Dying:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1000):
            pass

def command(words):
    with processes.joined() if sys.argv[2] == "train" else contextlib.nullcontext():
        Dying()
        time.sleep(20)
        print("went on")

main(command)
"""


@pytest.mark.parametrize(
    ("number", "command", "status"),
    [
        (signal.SIGINT, "train", 75),
        (signal.SIGTERM, "train", 75),
        (signal.SIGINT, "sample", 130),
        (signal.SIGTERM, "sample", 143),
        (signal.SIGHUP, "sample", 129),
    ],
)
def test_a_signal_is_one_sentence_and_not_lost_where_python_would_drop_what_it_raises(
    number, command, status
):
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_FINALIZER, str(int(number)), command],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == status and not done.stdout and len(said) == 1, done.stderr
    assert said[0].startswith("t2i: stopped by ") or number == signal.SIGINT
