"""All systems trained for equal time on `compositions`, and judged on its nine tasks.

    python benchmarks/equal_time.py runs/equal              # trains what is not there, an hour
    python benchmarks/equal_time.py runs/equal parti muse   # these alone

Each recipe `configs/NAME/compositions.py` has as many updates as two cores make in about 15
minutes, its parts and compilation included. Told is the processor time, of which two cores that do
nothing else need half; other work beside makes it longer, by up to four tenths. Prints the table of
docs/benchmarks_of_prompts.md, the share of right images of 900 held-out captions, 100 a task.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import subprocess
import sys

from t2i_jax.eval.judge_compositions import TASKS
from t2i_jax.train.log import metrics_of

NAMES = {"parti": "Parti", "muse": "MaskGIT (Muse)", "imagen": "Imagen", "dalle2": "DALL-E 2"}
_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
_SPENT = "processor_seconds.txt"  # a line for each start of a training


def main() -> None:
    """Trains, judges, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("systems", nargs="*", default=list(NAMES), metavar="SYSTEM")
    parser.add_argument("--images", type=int, default=900, help="held-out captions")
    told = parser.parse_args()
    for name in told.systems:
        train(name, told.workdir / name)
        t2i("eval", told.workdir / name, f"evaluation.pictures={told.images}")
    print(table(told.workdir, told.systems))


def train(name: str, run: pathlib.Path) -> None:
    """Trains a system, or resumes it, and adds to the processor time of its folder."""
    run.mkdir(parents=True, exist_ok=True)
    if (run / _SPENT).is_file() and "alignment_heldout" in metrics_of(run):
        return
    before = _processor_seconds()
    try:
        # the few images that it ends with cost next to nothing
        config = _CONFIGS / name / "compositions.py"
        t2i("train", config, "evaluation.pictures=9", "--workdir", run)
    finally:
        with open(run / _SPENT, "a") as file:
            file.write(f"{_processor_seconds() - before:.1f}\n")


def t2i(*words: str | pathlib.Path) -> None:
    """A command in a process of its own."""
    subprocess.run([sys.executable, "-m", "t2i_jax.cli.main", *map(str, words)], check=True)


def _processor_seconds():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def table(workdir: pathlib.Path, names: list[str]) -> str:
    """In Markdown, a column per system."""
    found = [metrics_of(workdir / name) for name in names]
    rows = [[task, *(_percent(one, f"/task/{task}") for one in found)] for task in TASKS]
    rows += [["mean of the tasks", *(_percent(one, "/tasks") for one in found)]]
    minutes = [
        sum(map(float, (workdir / name / _SPENT).read_text().split())) / 60 for name in names
    ]
    rows += [["minutes of one core", *(f"{one:.0f}" for one in minutes)]]
    heads = ["task", *(NAMES[name] for name in names)]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(metrics, name):
    return f"{100 * metrics['alignment_heldout' + name]:.0f}%"


if __name__ == "__main__":
    main()
