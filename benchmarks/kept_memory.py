"""What keeping freed memory is worth on a CPU: our side of benchmark rows without and with it.

    python benchmarks/kept_memory.py imagen:train_larger dalle2:train_decoder
    python benchmarks/kept_memory.py --repeats 5 imagen:train_base

Without, with, without, with, each in a process of its own that runs a row six times after two that
do not count. Prints seconds of a run (medians), pages that the system hands out for one, and the
most memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

_RUNS, _WARM = 6, 2


def main() -> None:
    """Runs the rows in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="SYSTEM:ROW")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each kind")
    told = parser.parse_args()
    print("| row | without s | with s | shorter by | pages without | pages with | MB | MB with |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in told.rows:
        found: dict[bool, list[dict]] = {False: [], True: []}
        for kept in (False, True) * told.repeats:
            found[kept].append(_process(row, kept))
        print(_line(row, found[False], found[True]), flush=True)


def _process(row, kept):
    """What a process of its own found."""
    program = "import sys, kept_memory; kept_memory.measure(*sys.argv[1:])"
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own.pop("GLIBC_TUNABLES", None)
    told = subprocess.run(
        [sys.executable, "-c", program, *row.split(":"), str(int(kept))],
        cwd=os.path.dirname(__file__), env=own, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(told.stdout.splitlines()[-1])


def measure(system: str, name: str, kept: str) -> None:
    """Prints seconds, pages and memory of a row in this process, as JSON."""
    from t2i_jax.heap import keep_freed_memory

    if kept == "1" and not keep_freed_memory():
        raise SystemExit("kept_memory: this C library has no such setting; use Linux with glibc.")
    from one_process import sides

    rows, ours = (sides(system)[part]() for part in ("rows", "ours"))
    size = rows.ROWS[name].size
    subject = ours.Side(name, size, rows.inputs(size))
    for _ in range(_WARM):
        subject.run()
    before, seconds = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(_RUNS):
        start = time.perf_counter()
        subject.run()
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    pages = (after.ru_minflt - before.ru_minflt) / _RUNS
    print(json.dumps({"s": seconds, "pages": pages, "MB": after.ru_maxrss / 1024}))


def _line(row, without, kept):
    def median(found, key):
        values = [one[key] for one in found]
        return statistics.median(sum(values, []) if key == "s" else values)

    slow, fast = (median(found, "s") for found in (without, kept))
    counts = [f"{median(found, key):.0f}" for key in ("pages", "MB") for found in (without, kept)]
    return f"| {row} | {slow:.3g} | {fast:.3g} | {1 - fast / slow:.0%} | {' | '.join(counts)} |"


if __name__ == "__main__":
    main()
