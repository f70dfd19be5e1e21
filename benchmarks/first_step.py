"""The time to the first step of a training, and to the images of a sampling, of whole processes.

    python benchmarks/first_step.py configs/imagen/shapes.py
    python benchmarks/first_step.py configs/imagen/shapes.py --sample

Each is started twice: with an empty compilation cache, and again with what that start has left
there. Beside the seconds that passed stand those that the processor worked, which other work on the
machine changes less. The training is stopped after its first step, which is what is sampled.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=pathlib.Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sample", action="store_true", help="sample of the run, too")
    parser.add_argument("--prompt", default="a red circle above a blue square")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        print("| what | cache | seconds | of the processor |\n| --- | --- | ---: | ---: |")
        for cache in ("empty", "warm"):
            train = ["train", told.recipe, *told.overrides, "--workdir", home / cache]
            _line("first step", cache, _measured(home, train, home / cache / "metrics.jsonl"))
        if told.sample:
            for cache in ("empty", "warm"):
                sample = ["sample", home / "warm", told.prompt, "--out", home / f"images_{cache}"]
                made = home / f"images_{cache}" / "grid.png"
                _line("four images", cache, _measured(home / "sampling", sample, made))


def _measured(home, words, written):
    """(seconds, seconds of the processor) until a process has written something; then it is
    stopped.
    """
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            _command(words), env=_environment(home / "cache"), stdout=said, stderr=said
        )
        while not (written.is_file() and written.stat().st_size):
            if process.poll() is not None:
                said.seek(0)
                sys.exit(f"the process has ended early:\n{said.read()[-2000:]}")
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        worked = _worked(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if worked is None:  # no /proc: with what came after
        worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, worked


def _worked(pid):
    """Seconds that the processor has worked for a process; None where the system does not say."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _command(words):
    return [sys.executable, "-m", "t2i_jax.cli.main", *map(str, words)]


def _environment(cache):
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}


def _line(what, cache, measured):
    print(f"| {what} | {cache} | {measured[0]:.1f} | {measured[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
