"""A restart that finds its compiled step neither traces nor compiles.

What does not fit or is damaged is left alone.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.train import executables
from t2i_jax.train.executables import Executables, fresh
from t2i_jax.train.identity import identity
from tests.e2e.tiny_imagen import get_config

from .again import start
from .toy import ToyTask

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def setting():
    """`setting(name, value)` sets one of JAX's options until the end of the test."""
    before = {}

    def change(name, value):
        before.setdefault(name, jax.config.values[name])
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def again(tmp_path, setting):
    """`start` on one device in a folder of its own; the compilation cache keeps nothing of it."""
    setting("jax_persistent_cache_min_compile_time_secs", 1e6)
    mesh = sharding.make_mesh(None, jax.devices()[:1])
    return lambda what="a toy": start(tmp_path / "steps", mesh, what)


def _files(tmp_path):
    return sorted((tmp_path / "steps").iterdir())


def test_a_second_start_does_not_trace_and_gives_the_same_bits(again, tmp_path):
    traced, state, loss, given_away = again()
    assert traced == 1 and given_away and len(_files(tmp_path)) == 1
    assert _files(tmp_path)[0].stat().st_mode & 0o777 == 0o600
    traced, same, loss_again, given_away = again()
    assert traced == 0 and given_away and loss == loss_again

    def plain(state):
        return state.replace(key=jax.random.key_data(state.key))

    chex.assert_trees_all_equal(plain(state), plain(same))


def test_the_first_step_is_made_before_its_program_is_kept(again, tmp_path, monkeypatch):
    kept = []
    save, run = Executables.save, jax.stages.Compiled.__call__

    def saved(*arguments):
        kept.append("kept")
        return save(*arguments)

    def ran(program, *arguments):
        kept.append("step")
        return run(program, *arguments)

    monkeypatch.setattr(Executables, "save", saved)
    monkeypatch.setattr(jax.stages.Compiled, "__call__", ran)
    again("another toy")
    assert kept == ["step", "kept", "step"]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _open_up(path):
    path.chmod(0o620)


def _empty(path):
    path.write_bytes(b"")


def test_a_file_that_is_damaged_or_that_others_can_write_counts_as_none_and_is_replaced(
    again, tmp_path
):
    _, _, loss, _ = again()
    for damage in (_cut, _flip, _open_up, _empty):
        damage(_files(tmp_path)[0])
        traced, _, same, _ = again()
        assert traced == 1 and same == loss, damage.__name__
        assert again()[0] == 0 and len(_files(tmp_path)) == 1, damage.__name__


def test_nothing_is_read_from_a_folder_in_which_others_can_write_nor_kept_where_nobody_can(
    again, tmp_path
):
    again()
    (tmp_path / "steps").chmod(0o777)
    assert again()[0] == 1
    (tmp_path / "steps").rename(tmp_path / "away")
    (tmp_path / "steps").write_text("no folder")
    assert again()[0] == 1


def test_another_step_another_file(again, tmp_path):
    assert [again(what)[0] for what in ("one", "two", "one")] == [1, 1, 0]
    assert len(_files(tmp_path)) == 2


def test_the_folder_is_bounded_and_what_was_used_last_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(executables, "_LIMIT", 250)
    kept = Executables(tmp_path, {}, jax.devices())
    for number in range(3):
        kept._write(tmp_path / str(number), b"x" * 100)
        os.utime(tmp_path / str(number), (number, number))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    os.utime(tmp_path / "1", (9, 9))
    kept._write(tmp_path / "3", b"x" * 100)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}
    kept._write(tmp_path / "4", b"x" * 1000)  # larger than all: it stays alone
    assert {path.name for path in tmp_path.iterdir()} == {"4"}


def test_how_long_compiling_takes_is_known_from_the_newest_times_of_the_same_step(tmp_path):
    one, other = (Executables(tmp_path / "steps", {"width": n}, jax.devices()) for n in (1, 2))
    assert one.usual_seconds() is None
    for seconds in (900, 30, 31, 10, 32, 33):  # the first is forgotten
        one.note_seconds(seconds)
    assert one.usual_seconds() == 31 and other.usual_seconds() is None
    for damage in ("", "{", "[]", '["long"]', "7"):
        one._times().write_text(damage)
        assert one.usual_seconds() is None
    one.note_seconds(5)  # what is damaged is replaced
    assert one.usual_seconds() == 5


def test_what_the_compilation_cache_had_is_told_from_what_was_compiled(setting):
    """XLA writes a program again that it read from its cache, but on a CPU without some of its
    functions.
    """
    setting("jax_persistent_cache_min_compile_time_secs", 0.0)
    found, number = [], secrets.randbelow(2**30)
    x = np.ones((4, 4), np.float32)  # no program of its own
    for _ in range(2):
        with fresh() as is_fresh:
            jax.jit(lambda x: jnp.tanh(x) @ x + number).lower(x).compile()
        found.append(bool(is_fresh))
        jax.clear_caches()
    assert found == [True, False]


def test_what_is_not_fresh_is_not_kept(again, tmp_path, monkeypatch):
    monkeypatch.setattr("t2i_jax.train.compiled.fresh", contextlib.nullcontext)
    assert again()[0] == 1 and again()[0] == 1 and not (tmp_path / "steps").exists()


def test_what_changes_a_program_changes_its_identity(monkeypatch):
    device = jax.devices()[:1]
    x = jnp.ones((2, 2))
    seen = [identity({"a": 1}, (x, {}), None, device)]
    assert identity({"a": 1}, (x + 1, {}), None, device) == seen[0]  # values do not matter

    def add(*arguments):
        seen.append(identity(*arguments))

    add({"a": 2}, (x, {}), None, device)
    add({"a": 1}, (x[:1], {}), None, device)
    add({"a": 1}, (x.astype(jnp.bfloat16), {}), None, device)
    add({"a": 1}, (x, {"y": x}), None, device)
    add({"a": 1}, (x, {}), {"xla_cpu_scheduler_type": "0"}, device)
    add({"a": 1}, (jax.device_put(x, device[0]), {}), None, device)
    with jax.default_matmul_precision("highest"):
        add({"a": 1}, (x, {}), None, device)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=elsewhere")
    add({"a": 1}, (x, {}), None, device)
    monkeypatch.setattr("t2i_jax.train.identity.source", lambda: "edited")
    add({"a": 1}, (x, {}), None, device)
    assert len(set(seen)) == len(seen)


def test_only_a_task_whose_source_is_known_is_kept_and_only_beside_a_cache_on_this_machine(setting):
    task = get_config().task
    assert Executables.of(task, {}, jax.devices()) is not None
    assert Executables.of(ToyTask(), {}, jax.devices()) is None
    stage = task.stages[0]
    foreign = type("Unet", (type(stage.unet),), {"__module__": "mine"})
    own = dataclasses.replace(
        stage, unet=foreign(**{f: getattr(stage.unet, f) for f in ("dim", "dim_mults")})
    )
    assert (
        Executables.of(dataclasses.replace(task, stages=(own, *task.stages[1:])), {}, jax.devices())
        is None
    )
    for cache in ("gs://bucket/cache", None):
        setting("jax_compilation_cache_dir", cache)
        assert Executables.of(task, {}, jax.devices()) is None


def _processes(folder, count):
    """What `count` processes print; 1 has eight devices, each of 2 has two."""
    port = 0
    if count > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.train.again", str(folder)]
    settings = {"cwd": _ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([*command, str(rank), str(port)], **settings) for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_a_start_in_another_process_finds_a_step_split_over_eight_devices(tmp_path):
    ((first, loss, given_away),) = _processes(tmp_path, 1)
    ((second, same, given_away_again),) = _processes(tmp_path, 1)
    assert (first, second) == (1, 0) and loss == same and given_away and given_away_again


def test_several_processes_use_their_files_all_or_none(tmp_path):
    first = _processes(tmp_path, 2)
    assert [traced for traced, *_ in first] == [1, 1] and len(
        list((tmp_path / "steps").iterdir())
    ) == 2
    second = _processes(tmp_path, 2)
    assert [traced for traced, *_ in second] == [0, 0] and {
        loss for _, loss, _ in first + second
    } == {first[0][1]}
    next((tmp_path / "steps").iterdir()).write_bytes(b"damaged")
    assert [traced for traced, *_ in _processes(tmp_path, 2)] == [1, 1]
