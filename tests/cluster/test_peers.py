"""The connection between processes without JAX; with it: tests/train/test_processes.py."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from t2i_jax.cluster import lines
from t2i_jax.cluster.peers import Hub

_JOIN = """
import json, sys, time
from t2i_jax.cluster.peers import Peers
peers = Peers(int(sys.argv[1]), json.loads(sys.argv[2]))
for round in range(100):
    values = peers.gather([peers.process, round])
    assert values == [[0, round], [1, round], [2, round]], values
peers.ask_to_stop()
assert peers.stop.wait(10)
peers.leave()
print(peers.name(1))
"""


def join(process, hub):
    command = [sys.executable, "-c", _JOIN, str(process), json.dumps(hub.address)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def hub():
    return Hub("localhost", 3)


def test_values_go_from_each_to_all_whoever_else_knocks(hub):
    strangers = [socket.create_connection(("localhost", hub.address["port"])) for _ in range(3)]
    for stranger, said in zip(
        strangers, (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": 1, "token": ""}\n')
    ):
        stranger.sendall(said)
    peers = [join(process, hub) for process in (2, 0, 1)]
    names = {peer.communicate(timeout=60)[0].strip() for peer in peers}
    assert [peer.returncode for peer in peers] == [0, 0, 0]
    assert names == {f"process 1 ({socket.gethostname()}, pid {peers[2].pid})"}
    for stranger in strangers:
        stranger.close()


def test_one_that_dies_while_all_join_ends_those_that_wait_for_it(hub):
    waiting, dying = join(0, hub), join(1, hub)
    while len(hub._connections) < 2:
        time.sleep(0.01)
        assert waiting.poll() is None and dying.poll() is None
    dying.kill()
    dying.communicate()
    said = waiting.communicate(timeout=60)[1]
    assert "t2i: a process was lost while all joined; start the same command again." in said
    assert waiting.returncode == 75


@pytest.mark.parametrize("said", ["5", "null", '"x"', "[1]", "true", "[" * 4000])
def test_a_first_line_that_is_no_object_is_refused(said):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(f"{said}\n".encode())
        with pytest.raises(ValueError, match="no object|too deeply"):
            lines.Lines(ours).first()


def _closed(connection):
    """Whether the other end closes the connection within ten seconds."""
    connection.settimeout(10)
    try:
        return not connection.recv(1)
    except ConnectionError:
        return True


def test_a_stranger_may_not_write_without_an_end_nor_keep_silent_for_ever(hub, monkeypatch):
    monkeypatch.setattr(lines, "_PATIENCE", 0.5)
    address = ("localhost", hub.address["port"])
    silent = socket.create_connection(address)
    dripping = socket.create_connection(address)
    endless = socket.create_connection(address)
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            endless.sendall(bytes(2**16))
    assert _closed(endless)
    with contextlib.suppress(ConnectionError):
        for _ in range(20):
            dripping.sendall(b" ")
            time.sleep(0.05)
    assert _closed(silent) and _closed(dripping)
    deep = socket.create_connection(address)
    deep.sendall(b"[" * 4000 + b"\n")
    assert _closed(deep)


def test_of_many_silent_strangers_only_the_newest_stay_and_those_who_know_the_token_join(hub):
    address = ("localhost", hub.address["port"])
    strangers = [socket.create_connection(address) for _ in range(lines._STRANGERS + 20)]
    assert all(_closed(stranger) for stranger in strangers[:10])
    peers = [join(process, hub) for process in range(3)]
    assert [peer.wait(60) for peer in peers] == [0, 0, 0]
    for peer in peers:
        peer.communicate()
    for stranger in strangers:
        stranger.close()


_FEW_DESCRIPTORS = """
import resource, socket, time
from t2i_jax.cluster import lines
server, served = lines.server("localhost", 0, 10), []
def serve(connection, known):
    known(), served.append(1), connection.recv(1)
lines.listen(server, serve)
strangers = [socket.socket() for _ in range(40)]
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
for stranger in strangers:
    stranger.settimeout(0.2)
    try:
        stranger.connect(server.getsockname())
    except OSError:
        pass
time.sleep(0.3)
assert len(served) < 40
for stranger in strangers:
    stranger.close()
socket.create_connection(server.getsockname()).sendall(b"x")
end = time.monotonic() + 20
while len(served) < 40 and time.monotonic() < end:
    time.sleep(0.05)
    before = len(served)
    socket.create_connection(server.getsockname()).close()
    time.sleep(0.05)
    if len(served) > before:
        print("still accepting")
        break
"""


def test_a_process_without_free_descriptors_accepts_again_when_there_are_some():
    done = subprocess.run(
        [sys.executable, "-c", _FEW_DESCRIPTORS],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "still accepting", done.stderr


def test_a_second_process_of_a_number_is_refused_and_the_others_join(hub):
    peers = [join(process, hub) for process in (0, 1)]
    while len(hub._connections) < 2:
        time.sleep(0.01)
    said = join(1, hub).communicate(timeout=60)[1]
    assert f"t2i: process 1 is there already ({socket.gethostname()}, pid {peers[1].pid})" in said
    peers.append(join(2, hub))
    for peer in peers:
        peer.communicate(timeout=60)
    assert [peer.returncode for peer in peers] == [0, 0, 0]


def test_the_hub_listens_at_the_address_that_it_was_given():
    assert Hub("127.0.0.1", 2)._server.getsockname()[0] == "127.0.0.1"
    assert lines.bound("localhost") == "127.0.0.1"
    assert lines.bound("192.0.2.1") is None  # of no machine: all addresses, as behind a gateway


_ENTER = """
import sys, time
from t2i_jax.cluster import register
from t2i_jax.errors import UserError
try:
    register.enter("localhost", int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
print("entered", flush=True)
time.sleep(60)
"""


def _enter(port, process, count=3):
    command = [sys.executable, "-c", _ENTER, str(port), str(process), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_number_is_given_once_and_one_that_dies_before_all_have_joined_is_missed_by_all():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    first, second = _enter(port, 0), _enter(port, 1)
    assert first.stdout.readline() == second.stdout.readline() == "entered\n"
    twice, other = _enter(port, 1), _enter(port, 2, count=4)
    said = twice.communicate(timeout=60)[0]
    assert (
        f"JAX_PROCESS_ID=1 is taken by process 1 ({socket.gethostname()}, pid {second.pid}" in said
    )
    assert twice.returncode == 2
    assert "JAX_NUM_PROCESSES=4" in other.communicate(timeout=60)[0] and other.returncode == 2
    third = _enter(port, 2)
    assert third.stdout.readline() == "entered\n"
    second.send_signal(signal.SIGKILL)
    for process in (first, third):
        said = process.communicate(timeout=60)[1]
        assert f"pid {second.pid}) was lost before all had joined" in said
        assert process.returncode == 75
    second.communicate()


def test_without_process_0_a_process_ends_when_it_dies():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    first, second = _enter(port, 0), _enter(port, 1)
    assert first.stdout.readline() == second.stdout.readline() == "entered\n"
    first.kill()
    first.communicate()
    assert "process 0 was lost" in second.communicate(timeout=60)[1] and second.returncode == 75
