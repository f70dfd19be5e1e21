"""What runs in one measuring process: one side alone, or both in turns. Prints one line of JSON.

python one_process.py SYSTEM alone ROW SIDE [small]
python one_process.py SYSTEM turns ROW REPEATS [small]
python one_process.py SYSTEM compiled ROW REPEATS [small]    # theirs under torch.compile
python one_process.py parti cached generate REPEATS [small]    # beside a loop with a KV cache
python one_process.py parti cached-compiled generate REPEATS [small]
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import sys
import time

import limits

from t2i_jax.heap import keep_freed_memory


def sides(system: str) -> dict:
    """The modules of a system: rows and inputs, our side and the other, each imported when it is
    asked for.
    """

    def parti_rows():
        import parti_rows

        return parti_rows

    def jax_parti():
        import jax_parti

        return jax_parti

    def torch_parti():
        import torch_parti

        return torch_parti

    def torch_loop():
        import torch_loop

        return torch_loop

    def imagen_rows():
        import imagen_rows

        return imagen_rows

    def jax_imagen():
        import jax_imagen

        return jax_imagen

    def torch_imagen():
        import torch_imagen

        return torch_imagen

    def muse_rows():
        import muse_rows

        return muse_rows

    def jax_muse():
        import jax_muse

        return jax_muse

    def torch_muse():
        import torch_muse

        return torch_muse

    def dalle2_rows():
        import dalle2_rows

        return dalle2_rows

    def jax_dalle2():
        import jax_dalle2

        return jax_dalle2

    def torch_dalle2():
        import torch_dalle2

        return torch_dalle2

    return {
        "dalle2": {"rows": dalle2_rows, "ours": jax_dalle2, "theirs": torch_dalle2},
        "muse": {"rows": muse_rows, "ours": jax_muse, "theirs": torch_muse},
        "parti": {
            "rows": parti_rows,
            "ours": jax_parti,
            "theirs": torch_parti,
            "cached": torch_loop,
        },
        "imagen": {"rows": imagen_rows, "ours": jax_imagen, "theirs": torch_imagen},
    }[system]


def alone(system: str, name: str, side: str, small: bool) -> dict:
    """One side in a process of its own.

    Returns:
      "first" and "later": seconds of the first unit of work and the median of those after it (None
      where there is only one); "peak": the largest resident set of this process from its start
      (imports, weights, compiling and work), in bytes; "working": the same during the last unit of
      work alone; "versions".
    """
    row = sides(system)["rows"]().ROWS[name]
    size = row.small if small else row.size
    module = sides(system)[side]()
    subject = module.Side(name, size, sides(system)["rows"]().inputs(size))
    times = [_seconds(subject.run) for _ in range(row.units - 1 + (side == "ours"))]
    before = _peak()
    _forget_peak()
    times.append(_seconds(subject.run))
    working = _peak()
    return {
        "first": times[0],
        "later": statistics.median(times[1:]) if times[1:] else None,
        "peak": max(before, working),
        "working": working,
        "versions": {package: importlib.metadata.version(package) for package in module.PACKAGES},
    }


def turns(
    system: str, name: str, repeats: int, small: bool, compiled: bool = False, peer: str = "theirs"
) -> dict:
    """Both sides in one process, on the same weights and inputs, after one warm-up each: theirs,
    ours, theirs, ours.

    Args:
      compiled: whether their networks run under `torch.compile`; the warm-up is three units then.
      peer: "theirs", the package, or "cached", a loop that keeps keys and values.

    Returns:
      "ours" and "theirs": seconds of each repeat. "first": of their warm-up. "floor": seconds of
      the least work at the rates that this process measured; "machine": these rates.
    """
    rows = sides(system)["rows"]()
    row = rows.ROWS[name]
    size = row.small if small else row.size
    batch = rows.inputs(size)
    theirs = sides(system)[peer]().Side(name, size, batch)
    ours = sides(system)["ours"]().Side(name, size, batch, theirs.weights())
    if compiled:
        _compile(theirs.compilable())
    first = _seconds(theirs.run if compiled else theirs.warm_up)
    for _ in range(2 if compiled else 0):  # it compiles again in the second, and in the third unit
        first += _seconds(theirs.run)
    ours.warm_up()
    times = [(_seconds(theirs.run), _seconds(ours.run)) for _ in range(repeats)]
    rates = limits.machine()
    return {
        "theirs": [a for a, _ in times],
        "ours": [b for _, b in times],
        "first": first,
        "floor": limits.floor(ours.work, rates),
        "machine": rates,
    }


def _compile(methods):
    import torch

    for module, name in methods:  # some packages call `forward` itself, so not the module
        setattr(module, name, torch.compile(getattr(module, name)))


def _seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _forget_peak():
    """The peak counts from here on; see proc(5)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    keep_freed_memory()  # for both sides, as `t2i` does
    system, kind, row, last, *rest = sys.argv[1:]
    small = rest == ["small"]
    if kind == "alone":
        result = alone(system, row, last, small)
    else:
        peer = "cached" if kind.startswith("cached") else "theirs"
        result = turns(system, row, int(last), small, kind.endswith("compiled"), peer)
    print(json.dumps(result))
