"""The C library's heap, told to keep the memory that a process frees."""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h of glibc, see mallopt(3)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER, _GROWTH = -1, 64 * 2**20  # bytes
# Bytes of a piece that is set aside; smaller ones are found at once.
_LARGEST, _LEAST = 2**30, 2**12
_kept = False


def keep_freed_memory() -> bool:
    """Keeps memory that this process frees for what it allocates next; whether that is so from here
    on.

    XLA on a CPU allocates the memory of each step anew. By default the C library (glibc, of Linux)
    gives large blocks back to the system at once and gets them again page by page, which is a sixth
    of the time of a step and more. Here heaps grow by 64 MiB and more and never shrink, and no
    block is mapped by itself. A process then keeps the most memory that it ever had.

    Blocks of more than 64 MiB are kept for the main thread alone. The heaps of other threads can't
    hold them; with one heap for all, the threads of the compiler would wait for each other. So JAX
    is told to run a program for one CPU in the thread that calls it, not in one of its own. This
    function imports JAX, and comes before JAX computes anything.

    A user's own setting (GLIBC_TUNABLES, MALLOC_ARENA_MAX and the like) stays as it is, and so does
    another C library.
    """
    global _kept
    own = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or own:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _GROWTH}
    taken = [mallopt(name, value) for name, value in settings.items()]
    _kept = all(taken)
    if _kept:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return _kept


def clear() -> int:
    """Gives free memory back to the system, and takes its pieces out of the heap of a process that
    keeps what it frees; how many pieces these are.

    Compiling leaves many thousands of free pieces between others that stay. The C library then
    walks through long lists of them when a step allocates something, which can take a third of the
    step's time. So each piece is allocated here and never freed. That costs addresses alone:
    nothing is written to the pieces, whose pages are back with the system. Call it after compiling.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "malloc_trim"):
        return 0
    library.malloc_trim(ctypes.c_size_t(0))
    # older ones than glibc 2.33 don't tell how much is free
    return _set_aside(library) if _kept and hasattr(library, "mallinfo2") else 0


class _Told(ctypes.Structure):
    """The result of `mallinfo2`, see mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
        "keepcost".split()
    ]


def _set_aside(library):
    """Allocates all free pieces of a page and more, the largest first; their number."""
    library.mallinfo2.restype = _Told
    library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    told = library.mallinfo2()
    end = library.sbrk(0) - told.keepcost  # where its last block, which is free, begins
    free, size, count = told.fordblks - told.keepcost, _LARGEST, 0
    while size >= _LEAST and free > 0:
        piece = library.malloc(size)
        if piece and piece < end:
            free, count = free - size, count + 1
            continue
        library.free(piece)  # none of the free pieces is so large
        size = size * 9 // 10
    return count
