"""The comparison with the PyTorch packages and the measures of a device run, at toy sizes, and
print tables.
"""

import json
import pathlib
import runpy
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import sharding
from t2i_jax.models.parti import Parti
from t2i_jax.models.parti_transformer import PartiTransformer

_FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
_VS_PYTORCH = runpy.run_path(str(_FOLDER / "vs_pytorch.py"))


# Each row as the command line has it, but that the rates of the machine are measured once: starting
# and measuring are longer than a row.
_ONE_BY_ONE = """
import contextlib, functools, io, json, runpy, sys
import limits
limits.machine = functools.cache(limits.machine)
script, *rows = sys.argv[1:]
for name in rows:
    system, row = name.split("-")
    sys.argv = [script, system, "turns", row, "2", "small"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(script, run_name="__main__")
    print(json.dumps([name, json.loads(said.getvalue().splitlines()[-1])]), flush=True)
"""


_ROWS = ("parti-encode", "imagen-train_base", "muse-generate", "dalle2-sample_prior")


@pytest.fixture(scope="module")
def measured():
    """By row, what one process that runs them all measured, and what that said besides."""
    done = subprocess.run(
        [sys.executable, "-c", _ONE_BY_ONE, str(_FOLDER / "one_process.py"), *_ROWS],
        cwd=_FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"exit status {done.returncode}: {done.stderr}"
    return dict(map(json.loads, done.stdout.splitlines())), said


@pytest.mark.parametrize("row", _ROWS)
def test_both_sides_of_a_row_run_in_turns(measured, row):
    ended, said = measured
    assert row in ended and said.startswith("exit status 0:"), said
    times = ended[row]
    assert set(times) == {"theirs", "ours", "first", "floor", "machine"}
    assert 0 < times["floor"] < min(times["ours"]) and set(times["machine"]) == {"flops", "bytes"}
    assert all(len(times[side]) == 2 and min(times[side]) > 0 for side in ("theirs", "ours"))


def test_the_table_holds_medians_and_their_ratio():
    alone = {"first": 5.0, "later": 2.0, "peak": 3_000_000, "working": 1_000_000}
    turns = {"theirs": [4.0, 6.0, 5.0], "ours": [2.0, 2.5, 9.0], "floor": 1.25}
    row = {
        "first": alone,
        "second": {**alone, "first": 2.5},
        "theirs": {**alone, "peak": 7_000_000},
        "turns": turns,
    }
    lines = _VS_PYTORCH["table"]({"rows": {"encode": row}}).splitlines()
    assert len(lines) == 3
    compiled = _VS_PYTORCH["compiled_table"]
    assert compiled({"rows": {"encode": row}}) == ""
    rows = {"encode": {"compiled": {**turns, "first": 30.0}}, "generate": {"compiled": None}}
    told = compiled({"rows": rows}).splitlines()
    assert told[3] == "| encode | 5 | 2.5 | 2.00x | 1.25 | 2.0x | 30 |"
    assert told[4].startswith("| generate | does not compile")
    assert lines[2] == "| encode | 5 | 2.5 | 2.00x | 1.25 | 2.0x | 3.0 | 0.5 | 1 | 1 | 7 | 3 | 3 |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagen", "--rows", "train_gan"], "there are train_base"),
        (["parti", "--repeats", "0"], "--repeats=0 is below 1"),
    ],
)
def test_what_is_not_there_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        _VS_PYTORCH["main"](arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_device_is_measured(capsys, monkeypatch):
    monkeypatch.syspath_prepend(_FOLDER)
    path = str(_FOLDER / "accelerator.py")
    runpy.run_path(path)["main"](["--small", "machine", "attention", "parti_350m", "peer"])
    said = capsys.readouterr().out.splitlines()
    rows = ["matrix products", "copying", "fused", "by XLA", "", "train"]
    rows += ["sample", "PyTorch, train", "PyTorch, sample"]
    assert said[0].startswith("cpu, jax ")
    for line, what in zip(said[4:], rows, strict=True):
        assert line.split(" | ")[1].startswith(what) and line.count("|") == said[2].count("|")
    apart, said_of_it = said[8].split(" | ")[1].split(" ", 1)
    assert float(apart) < 0.02 and said_of_it.startswith("of the largest gradient")  # of bfloat16
    with pytest.raises(SystemExit, match="row='parti' is not known; known: machine, parti_350m"):
        runpy.run_path(path)["main"](["parti"])


def test_ways_of_a_convolution_are_compared(capsys, monkeypatch):
    monkeypatch.syspath_prepend(_FOLDER)
    monkeypatch.setattr("t2i_jax.heap.keep_freed_memory", lambda: False)
    monkeypatch.setattr("limits.machine", lambda: {"flops": 1e9, "bytes": 1e9})
    main = runpy.run_path(str(_FOLDER / "convolutions.py"))["main"]
    main.__globals__["_SIZES"] = ((2, 4, 3, 5),)
    main()
    (row,) = capsys.readouterr().out.splitlines()[2:]
    what, *times, floor = row.strip("| ").split(" | ")
    assert what == "2, 4, 3 to 5" and floor == f"{2 * 9 * 32 * 15 / 1e6:.3g}"
    assert len(times) == 13 and all(float(one) > 0 for one in times)


@pytest.mark.parametrize(
    ("network", "left_out"),
    [  # keys and values of two layers, a vector per row and per column, and single ones
        (
            PartiTransformer(16, 2, 2, 32, fmap_size=2, codebook_size=64, text_embed_dim=12),
            2 * 2 * 12 * 16 + 4 * 16 + 16 + 12 + 64 * 16,
        ),
        (
            Parti(16, 2, dim_head=8, heads=2, fmap_size=2, codebook_size=64, text_embed_dim=12),
            2 * 12 * 8 + 4 * 16 + 16,  # the table of embeddings gives the logits too
        ),
    ],
)
def test_a_token_reads_no_projection_of_the_text_and_no_whole_table_of_rows(network, left_out):
    ids, text, seen = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, 12)), jnp.ones((1, 1), bool)
    made = jax.eval_shape(network.init, jax.random.key(0), ids, text, seen)
    params = sharding.unbox(made["params"])
    read = runpy.run_path(str(_FOLDER / "limits.py"))["read_per_token"](params)
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert whole - sum(leaf.size for leaf in read) == left_out


def test_the_sweep_of_guidance_makes_a_table(tmp_path):
    sweep = runpy.run_path(str(_FOLDER / "guidance_sweep.py"))
    sweep["make_drawings"](tmp_path)
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 48 == len({file.read_bytes() for file in files})
    wanted = np.stack([np.asarray(Image.open(file)) for file in files[:5]])
    asked = []

    class Painter:
        def generate(self, captions, **options):
            asked.append((options["guidance"], options["temperature"], options["plausibility"]))
            return wanted if options["plausibility"] or options["guidance"] == 1 else 255 - wanted

    recipe = types.SimpleNamespace(
        evaluation=t2i.Evaluation(), data=t2i.DataConfig(source=f"folder:{tmp_path}")
    )
    lines = sweep["table"]("drawings", Painter(), recipe, 5).splitlines()
    assert lines[0] == "**drawings**, 5 images each" and len(lines) == 4 + 5
    assert lines[4].count("99.0 dB") == 3 and lines[6].count("99.0 dB") == 3
    assert len(asked) == 3 + 4 * 6 == len(set(asked))


def test_systems_trained_for_equal_time_stand_in_one_table(tmp_path):
    of = runpy.run_path(str(_FOLDER / "equal_time.py"))
    configs = {path.parent.name for path in (_FOLDER.parent / "configs").glob("*/compositions.py")}
    assert set(of["NAMES"]) == configs
    for i, name in enumerate(("parti", "muse")):
        (tmp_path / name).mkdir()
        shares = {f"alignment_heldout/task/{task}": 0.5 + i / 4 for task in of["TASKS"]}
        shares |= {"alignment_heldout": 0.5, "alignment_heldout/tasks": 0.6 + i / 10}
        (tmp_path / name / "metrics.json").write_text(json.dumps(shares))
        (tmp_path / name / "processor_seconds.txt").write_text("600.0\n900.0\n")
        of["train"](name, tmp_path / name)  # which is there
    lines = of["table"](tmp_path, ["parti", "muse"]).splitlines()
    assert lines[0] == "| task | Parti | MaskGIT (Muse) |" and len(lines) == 2 + 9 + 2
    assert lines[4] == "| counting | 50% | 75% |"
    assert lines[-2:] == ["| mean of the tasks | 60% | 70% |", "| minutes of one core | 25 | 25 |"]
