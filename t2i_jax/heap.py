"""The C library's heap, told to keep the memory that a process frees."""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h of glibc, see mallopt(3)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER, _GROWTH = -1, 64 * 2**20  # bytes


def keep_freed_memory() -> bool:
    """Keeps what this process frees for what it allocates next; whether that is so from here on.

    XLA on a CPU allocates the memory of each step anew. By default the C library (glibc, of Linux)
    gives large blocks back to the system at once and gets them again page by page, which is a sixth
    of the time of a step and more. Here all threads share one heap, which grows by 64 MiB and more
    and never shrinks, and no block is mapped by itself. A process then keeps the most memory that
    it ever had. It comes before JAX computes anything: threads that have a heap already keep it.

    A user's own setting (GLIBC_TUNABLES, MALLOC_ARENA_MAX and the like) stays as it is, and so does
    another C library.
    """
    own = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or own:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _GROWTH, _ARENA_MAX: 1}
    taken = [mallopt(name, value) for name, value in settings.items()]
    return all(taken)
