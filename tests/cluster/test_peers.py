"""The connection between processes without JAX; with it: tests/train/test_processes.py."""

import json
import socket
import subprocess
import sys
import time

import pytest

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
