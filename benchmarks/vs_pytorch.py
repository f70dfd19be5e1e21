"""t2i_jax beside the PyTorch packages: time and memory on the same inputs, as a table.

    python benchmarks/vs_pytorch.py parti                # everything, as in README.md
    python benchmarks/vs_pytorch.py parti --compiled     # and the package under torch.compile
    python benchmarks/vs_pytorch.py parti --rows train_parti,encode
    python benchmarks/vs_pytorch.py parti --small        # toy sizes, to see that it runs

For each row four processes run one after the other: our side alone with an empty compilation cache,
our side alone again with the cache that the first one left, the other side alone, and both in one
process, in turns. The first three give compile times and peak memory, the last one the times that
are compared. With --compiled a fifth has the package's networks under torch.compile, for at most
ten minutes. This process loads neither JAX nor PyTorch: what it has resident would count as the
peak of its children.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

SYSTEMS = {
    "parti": ("generate", "train_parti", "train_tokenizer", "train_gan", "encode"),
    "muse": ("generate", "superres", "train_maskgit", "train_tokenizer", "train_gan"),
    "imagen": ("train_base", "train_larger", "sample_ddpm", "sample_edm"),
    "dalle2": (
        "train_clip",
        "train_prior",
        "sample_prior",
        "train_decoder",
        "decoder_ddpm",
        "decoder_ddim",
    ),  # fmt: skip
}
_HERE = os.path.dirname(os.path.abspath(__file__))
_HEADS = (
    "row", "theirs s", "ours s", "faster", "floor s", "ours / floor", "compile s",
    "second start s", "theirs MB", "ours MB", "theirs from start MB", "ours from start MB",
    "second start MB",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    options = _options(arguments)
    result = {"machine": machine(), "system": options.system, "small": options.small, "rows": {}}
    for row in options.rows:
        print(f"{row} ...", file=sys.stderr, flush=True)
        result["rows"][row] = measure(options.system, row, options.repeats, options.small)
        if options.compiled:
            result["rows"][row]["compiled"] = under_compile(options.system, row, options)
    print(table(result) + compiled_table(result))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


def measure(system: str, row: str, repeats: int, small: bool) -> dict:
    """The results of a row's four processes: "first", "second" (ours), "theirs" and "turns"."""
    end = ["small"] if small else []
    with tempfile.TemporaryDirectory() as cache:

        def run(*words):
            return _run([system, *words, *end], cache)

        return {
            "first": run("alone", row, "ours"),
            "second": run("alone", row, "ours"),
            "theirs": run("alone", row, "theirs"),
            "turns": run("turns", row, str(repeats)),
        }


def under_compile(system: str, row: str, options: argparse.Namespace) -> dict | None:
    """The result of a row's turns with the package's networks under `torch.compile`; None: it
    failed or took longer than ten minutes.
    """
    words = [system, "compiled", row, str(options.repeats), *(["small"] if options.small else [])]
    with tempfile.TemporaryDirectory() as cache:
        try:
            return _run(words, cache, timeout=600)
        except (subprocess.TimeoutExpired, SystemExit):
            return None


def compiled_table(result: dict) -> str:
    """Markdown of what `under_compile` found; "" without it."""
    heads = ("row", "compiled s", "ours s", "faster", "floor s", "ours / floor")
    lines = [(*heads, "first two of theirs s")]
    lines.append(["---"] + ["---:"] * len(heads))
    for name, row in result["rows"].items():
        found = row.get("compiled", False)
        if found is None:
            failed = "does not compile and run within ten minutes"
            lines.append([name, failed, *[""] * (len(heads) - 1)])
        elif found:
            theirs, ours = (statistics.median(found[side]) for side in ("theirs", "ours"))
            numbers = _numbers(theirs, ours, found["floor"])
            lines.append([name, *numbers, f"{found['first']:.0f}"])
    if len(lines) == 2:
        return ""
    return "\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _numbers(theirs, ours, floor):
    ratios = f"{theirs / ours:.2f}x", f"{floor:.3g}", f"{ours / floor:.1f}x"
    return f"{theirs:.3g}", f"{ours:.3g}", *ratios


def table(result: dict) -> str:
    """Markdown: medians, their ratio, and what starting costs."""
    lines = [_HEADS, ["---"] + ["---:"] * (len(_HEADS) - 1)]
    for name, row in result["rows"].items():
        theirs, ours = (statistics.median(row["turns"][side]) for side in ("theirs", "ours"))
        compiling = [
            f"{max(row[start]['first'] - row[start]['later'], 0):.1f}"
            for start in ("first", "second")
        ]
        memory = [row[process]["working"] for process in ("theirs", "second")]
        memory += [row[process]["peak"] for process in ("theirs", "first", "second")]
        peaks = [f"{peak / 1e6:.0f}" for peak in memory]
        lines.append([name, *_numbers(theirs, ours, row["turns"]["floor"]), *compiling, *peaks])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict:
    """The processor, its cores that this process may use, memory and Python."""
    with open("/proc/cpuinfo") as file:
        model = next(
            (line.split(":")[1].strip() for line in file if line.startswith("model name")),
            "unknown",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--small", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument(
        "--compiled", action="store_true", help="beside the package under torch.compile too"
    )
    parser.add_argument("--rows", default="", help="comma-separated; all of them when left out")
    parser.add_argument(
        "--repeats", type=int, default=5, help="times that each side is measured, in turns"
    )
    parser.add_argument("--json", help="a file for all that was measured")
    options = parser.parse_args(arguments)
    known = SYSTEMS[options.system]
    options.rows = options.rows.split(",") if options.rows else list(known)
    for row in options.rows:
        if row not in known:
            parser.error(f"--rows has {row!r}; there are {', '.join(known)}")
    if options.repeats < 1:
        parser.error(f"--repeats={options.repeats} is below 1")
    return options


def _run(words, cache, timeout=None):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, os.path.join(_HERE, "one_process.py"), *words]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=False, timeout=timeout
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed with {done.returncode}; what it said is above.")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
