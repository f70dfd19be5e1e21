"""The time to the first step of a training, part by part, and to the images of a sampling.

    python benchmarks/first_step.py configs/imagen/shapes.py
    python benchmarks/first_step.py configs/imagen/shapes.py --sample
    python benchmarks/first_step.py quickstart
    python benchmarks/first_step.py configs/imagen/shapes.py --first-state

Whole processes of `t2i`, each started twice: with an empty compilation cache, and again with what
that start has left there. Beside the seconds that passed stand those that processors have worked
for all threads of the process, which other work on the machine changes less. Where a recipe trains
parts first, the first step is that of the first part. The training is stopped after its first step,
which is what is sampled.

`--first-state` compares the two ways to the state before the first step: on the host, as `t2i` goes
on a CPU, and with its program compiled.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

_PARTS = {  # what is told apart, by the function that does it
    "check": ("t2i_jax.runs.training", "check"),
    "shapes": ("t2i_jax.train.state", "abstract"),
    "first state": ("t2i_jax.train.state", "first"),
    "trace and lower, or load": ("t2i_jax.train.compiled", "CompiledStep.prepare"),
    "compile": ("jax.stages", "Lowered.compile"),
}
_TOLD = "FIRST_STEP_TOLD"  # in the environment of a child: the file for its parts


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a file, or quickstart")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sample", action="store_true", help="sample of the run, too")
    parser.add_argument("--prompt", default="a red circle above a blue square")
    parser.add_argument("--first-state", action="store_true", help="that alone")
    told = parser.parse_args()
    print("| what | cache | seconds | of processors |\n| --- | --- | ---: | ---: |")
    if told.first_state:
        return _both_ways(told.recipe)
    first = ["quickstart"] if told.recipe == "quickstart" else ["train", told.recipe]
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        for cache in ("empty", "warm"):
            words = [*first, *told.overrides, "--workdir", home / cache]
            whole, parts = _measured(home, words, home / cache, "metrics.jsonl")
            for name, seconds in parts.items():
                _print(name, cache, seconds)
            _print("all else", cache, functools.reduce(_minus, parts.values(), whole))
            _print("**first step done**", cache, whole)
        if told.sample:
            for cache in ("empty", "warm"):
                out = home / f"images_{cache}"
                words = ["sample", home / "warm", told.prompt, "--out", out]
                whole, _ = _measured(home / "sampling", words, out, "grid.png")
                _print("**four images done**", cache, whole)


def _measured(home, words, folder, name):
    """The seconds until a process has written a file below a folder, and those of its parts; then
    it is stopped.
    """
    home.mkdir(exist_ok=True)
    told = home / "told.json"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(home / "cache"), _TOLD: str(told)}
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, words)],
            env={**os.environ, **environment},
            stdout=said,
            stderr=said,
        )
        while not any(found.stat().st_size for found in folder.rglob(name)):
            if process.poll() is not None:
                said.seek(0)
                sys.exit(f"the process has ended early:\n{said.read()[-2000:]}")
            time.sleep(0.02)
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        worked = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        whole = (time.perf_counter() - begin, worked)
        process.send_signal(signal.SIGTERM)
        process.wait()
    return whole, json.loads(told.read_text())


def _child() -> None:
    """`t2i` with the words of this command; tells how long its parts take."""
    from t2i_jax.cli.main import start

    begin = _now()
    for name, (module, path) in _PARTS.items():
        *classes, function = path.split(".")
        owner = functools.reduce(getattr, classes, importlib.import_module(module))
        setattr(owner, function, _timed(name, getattr(owner, function)))
    _tell("imports", begin)
    start()


def _timed(name, function):
    @functools.wraps(function)
    def timed(*arguments, **named):
        begin = _now()
        made = function(*arguments, **named)
        _tell(name, begin)
        return made

    return timed


_parts: list[tuple[str, float, tuple[float, float]]] = []  # that are done: name, end, seconds


def _tell(name, begin):
    """Notes a part that has ended, without those that have begun and ended in it."""
    end = _now()
    inside = [took for _, done, took in _parts if done > begin[0]]
    _parts.append((name, end[0], functools.reduce(_minus, inside, _minus(end, begin))))
    sums: dict = {}
    for part, _, took in _parts:
        sums[part] = [a + b for a, b in zip(took, sums.get(part, (0, 0)), strict=True)]
    pathlib.Path(os.environ[_TOLD]).write_text(json.dumps(sums))


def _both_ways(path):
    """Prints what the first state takes on both ways, first that on the host."""
    import jax

    from t2i_jax import on_host
    from t2i_jax.runs.recipe import load_recipe
    from t2i_jax.train import state as states

    jax.config.update("jax_enable_compilation_cache", False)
    recipe, key = load_recipe(pathlib.Path(path)), jax.random.key(0)
    optimisers = states.optimisers_of(recipe.task, recipe.train)
    start = states.start_of(recipe.task, optimisers, recipe.train.ema_decay)
    for name, way in (("on the host", on_host.evaluate), ("compiled", lambda f, k: jax.jit(f)(k))):
        begin = _now()
        jax.block_until_ready(way(start, key))
        _print(name, "empty", _minus(_now(), begin))


def _now():
    return time.perf_counter(), time.process_time()


def _minus(one, other):
    return [a - b for a, b in zip(one, other, strict=True)]


def _print(what, cache, seconds):
    print(f"| {what} | {cache} | {seconds[0]:.1f} | {seconds[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main() if _TOLD not in os.environ else _child()
