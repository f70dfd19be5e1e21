"""Checkpoints on a hostile disk: damaged, missing, and full (a file system of its own, in a process
of its own).
"""

import dataclasses
import gc
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils.epath import gpath
from orbax.checkpoint._src.path import step as step_lib

from t2i_jax.errors import UserError
from t2i_jax.train import arrays, digests
from t2i_jax.train import best as bests
from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.train.loop import Hook, TrainConfig, fit
from t2i_jax.train.stored import load_config, load_params

from .toy import ToyBatches, ToyTask

_CONFIG = TrainConfig(steps=3, batch_size=16, save_every=1, log_every=1, keep=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, fit(ToyTask(), ToyBatches(), _CONFIG, workdir)


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "copy")


@pytest.mark.parametrize("name", ["run[1]", "a*b?", "\u00fc \u65e5\n#%20{x}'\"", "[", "s3:x"])
def test_a_folder_of_any_name_holds_checkpoints_that_can_be_read(trained, tmp_path, name):
    fit(ToyTask(), ToyBatches(), _CONFIG, tmp_path / name)
    chex.assert_trees_all_equal(load_params(tmp_path / name)[1], trained[1].params)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_a_backslash_which_would_be_taken_for_a_slash_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="has a backslash in its path"):
        fit(ToyTask(), ToyBatches(), _CONFIG, tmp_path / "back\\slash")
    assert not list(tmp_path.iterdir())


def _arrays(step: pathlib.Path, item: str):
    """The files that hold the values of an item."""
    return [path for path in (step / item).rglob("*") if path.is_file() and path.parent.name == "d"]


def _truncate(step):
    for path in _arrays(step, "rest"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        lambda step: [
            path.write_bytes(bytes(path.stat().st_size)) for path in _arrays(step, "weights")
        ],
        lambda step: shutil.rmtree(step / "weights"),
        lambda step: (step / "config" / "metadata").write_text('{"task"'),
        lambda step: [
            shutil.rmtree(path) if path.is_dir() else path.unlink() for path in step.iterdir()
        ],
    ],
    ids=["half", "zeros", "an item is gone", "torn JSON", "empty folder"],
)
def test_a_damaged_newest_checkpoint_is_named_and_kept_and_the_one_before_is_taken(
    trained, copy, damage, capfd
):
    damage(copy / "checkpoints" / "3")
    state = fit(ToyTask(), ToyBatches(), _CONFIG, copy)
    for field in ("params", "opt_state"):
        chex.assert_trees_all_equal(getattr(state, field), getattr(trained[1], field))
    said = [line for line in capfd.readouterr().err.splitlines() if "can't be read" in line]
    assert len(said) == 1 and "step 3" in said[0] and "step 2 is taken instead" in said[0]
    assert (copy / "unreadable" / "3.0").is_dir()
    assert sorted(
        int(path.name) for path in (copy / "checkpoints").iterdir() if path.name.isdigit()
    ) == [1, 2, 3]
    chex.assert_trees_all_equal(load_params(copy)[1], trained[1].params)


@pytest.mark.parametrize("digest", [True, False])
def test_a_step_under_another_number_is_kept_apart_and_takes_no_other_ones_place(
    copy, capfd, digest
):
    shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / "9")
    if digest:
        chex.assert_trees_all_equal(load_params(copy)[1], load_params(copy, step=3)[1])
    else:
        (copy / "checkpoints" / "9" / "digests.0.json").unlink()
    config = dataclasses.replace(_CONFIG, steps=4, keep=2)
    assert fit(ToyTask(), ToyBatches(), config, copy).step == 4
    told = "step 9 can't be read (it holds step 2, under another name); step 3 is taken instead"
    assert told in capfd.readouterr().err
    assert (copy / "unreadable" / "9.0").is_dir()
    assert bests.steps_in(copy / "checkpoints") == [3, 4]


def test_reading_alone_moves_nothing(copy, capfd):
    _truncate(copy / "checkpoints" / "3")
    shutil.rmtree(copy / "checkpoints" / "3" / "weights" / "d")
    load_params(copy)
    assert "step 2 is taken instead" in capfd.readouterr().err
    assert not (copy / "unreadable").exists() and (copy / "checkpoints" / "3").is_dir()


def _beside_a_run(copy, monkeypatch, owner, name, when, gone=("3",), new="5"):
    """Lets a run remove steps and save another one when a function is called for the first time."""
    folder, real = copy / "checkpoints", getattr(owner, name)
    shutil.copytree(folder / "3", copy / "new")
    (copy / "new" / "digests.0.json").unlink()  # they tell that it is step 3
    (copy / "scores.json").write_text('{"1": 9.0, "2": 8.0, "3": 1.0, "5": 2.0}')

    def go_on():
        if (copy / "new").exists():
            (copy / "new").rename(folder / new)
            for step in gone:
                (folder / step).rename(folder / f"{step}.orbax-checkpoint-tmp")
                shutil.rmtree(folder / f"{step}.orbax-checkpoint-tmp")

    def patched(*arguments, **named):
        if when == "before":
            go_on()
        found = real(*arguments, **named)
        go_on()
        return found

    monkeypatch.setattr(owner, name, patched)


@pytest.mark.parametrize("gone", [("3",), ("1", "2", "3")], ids=["the newest goes", "all go"])
@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [
        (digests, "check", "before"),
        (digests, "check", "after"),
        (ocp.CheckpointManager, "restore", "after"),
    ],
    ids=["before the comparison", "after it", "after the last read"],
)
@pytest.mark.parametrize(
    "read",
    [load_params, load_config, lambda workdir: load_params(workdir, step="best")],
    ids=["weights", "configuration", "best"],
)
def test_where_a_run_removes_the_step_that_is_read_the_newest_one_that_is_there_is_read(
    trained, copy, monkeypatch, capfd, read, owner, name, when, gone
):
    _beside_a_run(copy, monkeypatch, owner, name, when, gone)
    compared, check = [], digests.check

    def noted(step, *rest):
        compared.append(step.name)
        check(step, *rest)

    monkeypatch.setattr(digests, "check", noted)
    found = read(copy)
    assert compared == ["3", "5"] and not capfd.readouterr().err
    if read is load_params:
        chex.assert_trees_all_equal(found[1], trained[1].params)


@pytest.mark.parametrize("call", [1, 4], ids=["opening the folder", "listing it again"])
def test_a_step_that_goes_while_the_steps_are_listed_is_no_error(trained, copy, monkeypatch, call):
    """Orbax asks for the time of each step after it has listed them: three times when it opens."""
    time, calls = step_lib.Metadata.commit_timestamp.fget, itertools.count(1)

    def of(step):
        if next(calls) == call:
            shutil.rmtree(step.path)
        return time(step)

    monkeypatch.setattr(step_lib.Metadata, "commit_timestamp", property(of))
    chex.assert_trees_all_equal(load_params(copy)[1].keys(), trained[1].params.keys())
    assert len(list((copy / "checkpoints").iterdir())) == 2 and next(calls) > 6


def test_a_step_that_was_asked_for_and_goes_is_not_there(copy, monkeypatch):
    _beside_a_run(copy, monkeypatch, digests, "check", "before")
    with pytest.raises(UserError, match="step=3 has no checkpoint in .*; give best .* 1, 2, 5"):
        load_params(copy, step=3)


def test_steps_that_go_faster_than_they_are_read_end_in_a_sentence(copy, monkeypatch):
    folder = copy / "checkpoints"

    def check(step, *rest):
        step.rename(folder / str(int(step.name) + 1))

    monkeypatch.setattr(digests, "check", check)
    with pytest.raises(UserError, match="lost its newest one 20 times while .*; give train.keep"):
        load_params(copy)


def test_without_a_readable_checkpoint_nothing_is_trained_over_it(copy):
    for step in (1, 2, 3):
        _truncate(copy / "checkpoints" / str(step))
    with pytest.raises(UserError, match="holds none that can be read"):
        fit(ToyTask(), ToyBatches(), _CONFIG, copy)
    assert not (copy / "unreadable").exists()


def test_what_a_killed_save_left_is_swept_away(copy):
    left = copy / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(copy / "checkpoints" / "3", left)
    load_params(copy)
    assert left.is_dir()  # a reader leaves a save that may still be going on
    assert fit(ToyTask(), ToyBatches(), dataclasses.replace(_CONFIG, steps=4), copy).step == 4
    assert not left.exists()


def test_only_so_many_are_kept(copy):
    fit(ToyTask(), ToyBatches(), dataclasses.replace(_CONFIG, steps=6, keep=2), copy)
    assert sorted(
        int(path.name) for path in (copy / "checkpoints").iterdir() if path.name.isdigit()
    ) == [5, 6]


@pytest.mark.parametrize("make", ["write_text", "symlink_to"], ids=["a file", "a link to nothing"])
def test_what_has_the_name_of_a_step_and_is_none_is_kept(trained, copy, capfd, make):
    path = copy / "checkpoints" / "3"
    shutil.rmtree(path)
    getattr(path, make)("mine")
    (copy / "unreadable").mkdir()
    (copy / "unreadable" / "3.0").symlink_to("another")  # leads nowhere, and stays
    load_params(copy)
    assert not capfd.readouterr().err
    fit(ToyTask(), ToyBatches(), _CONFIG, copy)
    kept = copy / "unreadable" / "3.1"
    said = [line for line in capfd.readouterr().err.splitlines() if "no checkpoint" in line]
    assert said == [f"{str(path)!r} is no folder, so no checkpoint; it is kept in {str(kept)!r}."]
    assert (kept.is_symlink() and str(kept.readlink()) or kept.read_text()) == "mine"
    chex.assert_trees_all_equal(load_params(copy)[1], trained[1].params)


def test_a_file_in_the_place_of_the_checkpoints_is_refused_and_kept(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match="checkpoints' is a file where a folder belongs; restore"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="checkpoints' is a file where a folder belongs; move"):
        fit(ToyTask(), ToyBatches(), _CONFIG, tmp_path)
    assert (tmp_path / "checkpoints").read_text() == "mine"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""], ids=["torn", "no text", "empty"])
def test_of_a_damaged_file_of_orbax_nothing_but_our_sentence_is_said(copy, capfd, caplog, content):
    (copy / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_bytes(content)
    load_params(copy)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "step 3 can't be read (_CHECKPOINT_METADATA has" in said[0]
    assert not caplog.records
    for path in copy.rglob("digests.*.json"):  # where nothing else tells of it
        path.unlink()
    load_params(copy)
    assert "Metadata file" in caplog.text


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; train it first"):
        load_params(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        load_params(tmp_path)


def _at(step, act):
    return Hook(1, lambda state, done, log: act() if done == step else None)


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_folder_that_goes_while_it_trains_ends_in_a_sentence(tmp_path, capfd, caplog, how):
    run, new, once = tmp_path / "run", tmp_path / "new", dataclasses.replace(_CONFIG, save_every=3)
    go = {"moved": lambda: run.rename(new), "removed": lambda: shutil.rmtree(run)}[how]
    with pytest.raises(UserError, match="run' is no longer there, so .* not saved; where it was"):
        fit(ToyTask(), ToyBatches(), once, run, hooks=(_at(2, go),))
    gc.collect()
    assert not [line for line in capfd.readouterr().err.splitlines() if "rror" in line]
    assert not caplog.records and not (run / "checkpoints").exists()
    if how == "moved":
        (new / "lock").unlink()  # of this process, which would have ended
        assert fit(ToyTask(), ToyBatches(), once, new).step == 3


def test_a_folder_that_goes_while_a_step_is_saved_ends_in_the_same_sentence(
    tmp_path, monkeypatch, capfd, caplog
):
    run, finish = tmp_path / "run", Checkpoints._finish

    def late(self, step, counts):
        if step == 2:
            run.rename(tmp_path / "new")
        finish(self, step, counts)

    monkeypatch.setattr(Checkpoints, "_finish", late)
    with pytest.raises(UserError, match="run' is no longer there, so .* not saved; where it was"):
        fit(ToyTask(), ToyBatches(), _CONFIG, run)
    gc.collect()
    assert not [line for line in capfd.readouterr().err.splitlines() if "rror" in line]
    assert not caplog.records


def test_where_a_link_leads_to_the_folder_that_was_moved_the_run_goes_on(tmp_path):
    run, new = tmp_path / "run", tmp_path / "new"

    def go():
        run.rename(new)
        run.symlink_to(new)

    assert fit(ToyTask(), ToyBatches(), _CONFIG, run, hooks=(_at(2, go),)).step == 3
    assert load_config(new)


_ON_A_SMALL_DISK = """
import os, sys, time
from t2i_jax.errors import UserError
from t2i_jax.train.stored import load_params
from t2i_jax.train.loop import Hook, TrainConfig, fit
from tests.train.toy import ToyBatches, ToyTask

def filling(workdir, left):
    def fill(state, step, log):
        if step == 3:
            while not os.path.isdir(f"{workdir}/checkpoints/2"):  # saved in the background
                time.sleep(0.01)
            with open(f"{workdir}/filler", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    file.truncate(max(os.path.getsize(file.name) - left, 0))
    return Hook(1, fill)

for left in (0, 60_000, 300_000):  # so much of the next save finds its place
    workdir = f"{sys.argv[1]}/{left}"
    config = TrainConfig(steps=6, batch_size=16, save_every=2, log_every=10, keep=1)
    try:
        fit(ToyTask(width=2048), ToyBatches(), config, workdir, hooks=(filling(workdir, left),))
        print("no error")
    except UserError as error:
        print(error)
    os.remove(f"{workdir}/filler")
    assert load_params(workdir)[3]["seen"] == 32  # step 2
    if not left:
        assert fit(ToyTask(width=2048), ToyBatches(), config, workdir).step == 6
        print("carried on")
    os.system(f"rm -r {workdir}")
"""


def test_a_full_disk_ends_in_a_sentence_and_the_last_checkpoint_stays(tmp_path):
    mount = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False).returncode
    ):
        pytest.skip("this machine lets no user mount a file system of their own")
    command = [*unshare, "sh", "-c", mount, "sh", str(tmp_path), sys.executable, _ON_A_SMALL_DISK]
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.splitlines()
    assert told.pop(1) == "carried on" and len(told) == 3, told
    for sentence in told:
        assert "is full" in sentence and "the checkpoint of step 2 stays" in sentence
        assert "free space" in sentence
    # what Orbax, asyncio and TensorStore print of it, trace by trace
    for word in ("ERROR", "Error writing", "Traceback", "Errno"):
        assert word not in done.stderr, done.stderr[-3000:]


def _flipped(path, position, bits):
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)


def _files(step):
    return sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_bit_flipped_in_any_file_of_a_step_is_found_and_the_step_before_is_taken(
    trained, copy, capfd
):
    step, rng = copy / "checkpoints" / "3", np.random.default_rng(0)
    seen = set()
    for path in _files(step):
        places = {0, path.stat().st_size - 1, int(rng.integers(path.stat().st_size))}
        for place in places:
            _flipped(path, place, bits := 1 << int(rng.integers(8)))
            name = path.relative_to(step).as_posix()
            with pytest.raises(digests.Damaged, match="is not what was written"):
                digests.check(step)
            if name.startswith("weights/d/") or name.startswith("config/meta"):
                load_params(copy)
                said = capfd.readouterr().err
                assert f"step 3 can't be read ({name} is not what was written" in said
                assert "step 2 is taken instead" in said
            _flipped(path, place, bits)
            seen.add(name.partition("/")[0])
    assert {"weights", "rest", "data", "config", "digests.0.json"} <= seen
    digests.check(step)


def test_training_goes_on_from_the_step_before_a_flipped_bit(trained, copy, capfd):
    path = max(_arrays(copy / "checkpoints" / "3", "rest"), key=lambda path: path.stat().st_size)
    _flipped(path, path.stat().st_size // 2, 0x40)
    chex.assert_trees_all_equal(
        fit(ToyTask(), ToyBatches(), _CONFIG, copy).params, trained[1].params
    )
    assert "is not what was written" in capfd.readouterr().err
    assert (copy / "unreadable" / "3.0").is_dir()
    digests.check(copy / "checkpoints" / "3")  # made anew


def test_with_a_flipped_bit_in_every_step_the_sentence_says_that_none_is_left(copy):
    for step in (1, 2, 3):
        path = max(
            _arrays(copy / "checkpoints" / str(step), "weights"), key=lambda p: p.stat().st_size
        )
        _flipped(path, 100, 1)
    with pytest.raises(UserError, match="holds none that can be read .* not what was written"):
        load_params(copy)


def test_checkpoints_without_digests_are_read_and_the_comparison_can_be_left_out(
    trained, copy, monkeypatch
):
    for path in copy.rglob("digests.*.json"):
        path.unlink()
    chex.assert_trees_all_equal(load_params(copy)[1], trained[1].params)
    step = shutil.copytree(trained[0] / "checkpoints" / "3", copy / "other")
    _flipped(step / "_CHECKPOINT_METADATA", 3, 1)
    monkeypatch.setenv("T2I_DIGESTS", "off")
    digests.check(step)
    monkeypatch.delenv("T2I_DIGESTS")
    with pytest.raises(digests.Damaged):
        digests.check(step)


def test_a_process_compares_its_share_and_all_together_everything(copy, monkeypatch):
    monkeypatch.setattr(digests, "_BLOCK", 64)  # more blocks than one for a file
    step = copy / "checkpoints" / "3"
    for path in step.glob("digests.*.json"):
        path.unlink()
    for process in (0, 1):
        digests.write(step, process)
    for path in _arrays(step, "weights"):
        _flipped(path, path.stat().st_size // 2, 1)
        found = 0
        for process in range(3):
            try:
                digests.check(step, share=(process, 3))
            except digests.Damaged:
                found += 1
        assert found == 1
        _flipped(path, path.stat().st_size // 2, 1)


def test_a_save_that_cannot_be_read_back_is_no_checkpoint_and_the_one_before_stays(
    tmp_path, monkeypatch
):
    config = dataclasses.replace(_CONFIG, keep=1)
    merge = gpath.PosixGPath.glob

    def broken(folder, pattern):  # as Orbax once found nothing to merge
        third = any(part.startswith("3") for part in folder.parts)
        return iter(()) if third and "ocdbt" in pattern else merge(folder, pattern)

    monkeypatch.setattr(gpath.PosixGPath, "glob", broken)
    with pytest.raises(UserError, match="step 3 can't be read back .* step 2 stays"):
        fit(ToyTask(), ToyBatches(), config, tmp_path / "run")
    assert (tmp_path / "run" / "unreadable" / "3.0").is_dir()
    monkeypatch.undo()
    assert fit(ToyTask(), ToyBatches(), config, tmp_path / "run").step == 3


def test_arrays_that_are_missing_or_torn_are_found(copy):
    item = copy / "checkpoints" / "3" / "weights"
    count = len(json.loads((item / "_METADATA").read_text())["tree_metadata"])
    arrays.check(item, count)
    with pytest.raises(arrays.Missing, match=f"weights has {count} of {count + 1} arrays"):
        arrays.check(item, count + 1)
    for path in item.rglob("manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError):
        arrays.check(item, count)
