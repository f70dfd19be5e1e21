"""The heap keeps what was freed: a block that is allocated again costs no page of the system."""

import os
import subprocess
import sys

import pytest

# In a process of its own, since the setting holds for all of it: the pages that the system hands
# out while a block of 64 MiB is filled and freed ten times.
_PROGRAM = """
import resource
from t2i_jax.heap import keep_freed_memory
kept = {keep}
block = b"1" * 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    del block
    block = b"1" * 2**26
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(keep, **variables):
    """(what `keep_freed_memory` told, pages that were handed out)."""
    kept, count = told(_PROGRAM, keep, **variables)
    return kept, int(count)


def told(program, keep, **variables):
    """The words that a program prints in a process of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", program.format(keep=keep)]
    return subprocess.run(
        command, env={**own, **variables}, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept():
    _, handed_out = pages("None")
    assert handed_out > 10_000  # else there is nothing to keep
    kept, handed_out = pages("keep_freed_memory()")
    assert kept == "True" and handed_out < 100


# Pages that are handed out while a program with a product of 128 MiB runs ten times, and whether
# all that threads allocate lies in the heap of the main thread.
_LARGE = """
import ctypes, resource, threading
from t2i_jax.heap import keep_freed_memory
kept = {keep}
import jax, jax.numpy as jnp
program = jax.jit(lambda a, b: jnp.dot(jnp.tanh(jnp.dot(a, b)), b.T))
a, b = jnp.ones((8192, 8)), jnp.ones((8, 4096))
for count in range(12):
    if count == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(a, b))
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
libc, places = ctypes.CDLL(None), []
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=lambda: places.append(libc.malloc(2000))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
(line,) = [line for line in open("/proc/self/maps") if "[heap]" in line]
first, end = (int(place, 16) for place in line.split()[0].split("-"))
print(kept, pages, all(first <= place < end for place in places))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_program_keeps_its_memory_and_threads_have_heaps_of_their_own():
    _, without, _ = told(_LARGE, "None")
    assert int(without) > 100_000  # else there is nothing to keep
    kept, handed_out, is_shared = told(_LARGE, "keep_freed_memory()")
    # Now and then another thread's small piece comes to lie in the free block. The heap then grows
    # by one block once, which is a tenth of what is handed out without the setting.
    assert kept == "True" and int(handed_out) < int(without) / 4 and is_shared == "False"


@pytest.mark.parametrize(
    "variables", [{"GLIBC_TUNABLES": "glibc.malloc.check=0"}, {"MALLOC_ARENA_MAX": "2"}]
)
def test_a_users_own_setting_stays(variables):
    assert pages("keep_freed_memory()", **variables)[0] == "False"


def test_another_system_has_none(monkeypatch):
    from t2i_jax.heap import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


# A heap full of holes of 40 KB; whether a block that is allocated afterwards lies in one of them.
_HOLES = """
import ctypes
from t2i_jax import heap
kept = {keep}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(40_000 + 16 * (i % 500)) for i in range(4_000)]
content = ctypes.create_string_buffer(b"stays", 40_000)
for hole in blocks[::2]:
    libc.free(hole)
count, again = heap.clear(), heap.clear()
assert content.value == b"stays"
after = libc.malloc(40_000)
print(kept, count, again, min(blocks) < after < max(blocks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("keep", [True, False])
def test_holes_are_not_looked_through_after_clearing(keep):
    program = _HOLES.format(keep="heap.keep_freed_memory()" if keep else False)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    kept, count, again, is_between = told.stdout.split()
    assert kept == str(keep), told.stderr
    if keep:
        assert 2_000 <= int(count) < 20_000 and int(again) < 20 and is_between == "False"
    else:  # the C library's own way
        assert count == again == "0"
