"""`t2i compile` on tiny recipes, with the real TPU compiler."""

import errno
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from t2i_jax.aot import ahead, search
from t2i_jax.cli import compile as of_compile
from t2i_jax.cli.compile import compile_for
from t2i_jax.errors import UserError
from t2i_jax.runs.recipe import changed, load_recipe
from tests.e2e import tiny, tiny_imagen, tiny_muse
from tests.toy_system import recipe as toy

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is installed on Linux x86-64 alone",
)


def test_a_step_that_fits_is_told_and_written(tmp_path, capsys):
    out = tmp_path / "report.json"
    compile_for(
        pathlib.Path(tiny.__file__),
        ("train.batch_size=8",),
        topology="v5e:2x2",
        mesh="fsdp=4",
        json_file=out,
    )
    told, report = capsys.readouterr().out, json.loads(out.read_text())
    assert "v5e:2x2: 4 chips, fsdp=4" in told and "fits: peak" in told and "% at that" in told
    assert report["fits"] and report["mesh"] == {"fsdp": 4} and report["collectives"]


@pytest.mark.parametrize("text", ["def get_config(): ...", '{"name": "mine"}', '{"topology": ', ""])
def test_a_file_that_holds_no_such_numbers_is_kept(tmp_path, text):
    out = tmp_path / "mine"
    out.write_text(text)
    with pytest.raises(UserError, match="holds no numbers of a compiled step; name another file"):
        compile_for(pathlib.Path(tiny.__file__), topology="v5e:2x2", json_file=out)
    assert out.read_text() == text


def test_a_file_of_such_numbers_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    of_compile._write(out, {"fits": True, "topology": "v5e:2x2"})
    of_compile._write(of_compile._numbers_file(out), {"base": {"topology": "v5e:2x2"}})
    before = of_compile._numbers_file(out).read_text()
    with monkeypatch.context() as full, pytest.raises(OSError, match="report.json"):
        full.setattr(pathlib.Path, "write_text", _no_space)
        of_compile._write(out, {})
    assert out.read_text() == before and [path.name for path in tmp_path.iterdir()] == [out.name]


def _no_space(path, text):
    path.write_bytes(text[:1].encode())
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_step_that_does_not_fit_ends_with_1_and_says_what_is_large(capsys):
    huge = ("task.model.dim=65536", "task.model.heads=512", "task.model.mlp_dim=262144")
    with pytest.raises(SystemExit) as stop:
        compile_for(pathlib.Path(tiny.__file__), huge, topology="v5e:2x2")
    told = capsys.readouterr().out
    assert (
        stop.value.code == 1
        and "does not fit" in told
        and "largest arrays" in told
        and "kernel" in told
    )


@pytest.fixture
def little_fits(monkeypatch):
    """Puts the answers of a compiler for which all but 16 micro-batches are too large in place of
    the compiler; gives the numbers of micro-batches that it was asked for.
    """
    asked = []

    def step(task, config, frozen, topology):
        asked.append(config.accumulate)
        known = dict(topology=topology, chips=1, mesh={}, largest=(), seconds=0.0, hbm=16.0)
        sizes = dict(arguments=6.0, temporaries=30.0, peak=36.0)
        return ahead.Report(fits=config.accumulate == 16, **known, **sizes)

    def sampling(task, config, frozen, topology, count):
        return {"images": step(task, config, frozen, topology)}

    monkeypatch.setattr(ahead, "slice_devices", lambda topology: jax.devices()[:1])
    monkeypatch.setattr(ahead, "compile_step", step)
    monkeypatch.setattr(ahead, "compile_sampling", sampling)
    monkeypatch.setattr(search, "meshes", lambda *_: ())
    return asked


@pytest.mark.parametrize(
    ("module", "stage", "fields"),
    [
        (tiny, "", ["task.model.remat", "task.text.remat"]),
        (tiny_imagen, "", [*(f"task.stages.{i}.unet.remat" for i in (0, 1)), "task.text.remat"]),
        (tiny_muse, "superres.", ["superres.task.model.remat", "superres.task.text.remat"]),
    ],
)
def test_what_to_try_next_are_fields_of_the_recipe_that_are_not_yet_so(module, stage, fields):
    def told(recipe):
        of = recipe.parts[stage.strip(".")] if stage else recipe
        sentence = of_compile._remedy(of.task, of.train, stage)
        return [word.strip(",") for word in sentence.split() if "=" in word]

    recipe = load_recipe(module.__file__)
    words = told(recipe)
    assert words == [*(f"{field}=full" for field in fields), f"{stage}train.accumulate=2"]
    assert told(changed(recipe, words)) == [f"{stage}train.accumulate=4"]


def test_of_sampling_that_does_not_fit_no_field_of_training_is_told(little_fits, capsys):
    with pytest.raises(SystemExit) as stop:
        compile_for(pathlib.Path(tiny_imagen.__file__), topology="v5e:1x1", generate=8)
    remedy = "try a larger fsdp or tensor axis, fewer images than --generate 8, or more chips."
    assert stop.value.code == 1 and remedy in capsys.readouterr().out.splitlines()


def test_the_search_tries_the_recipes_own_number_of_micro_batches_too(little_fits, capsys):
    compile_for(
        pathlib.Path(tiny.__file__),
        ("train.batch_size=16", "train.accumulate=16"),
        topology="v5e:1x1",
        search=True,
    )
    assert little_fits[:5] == [1, 2, 4, 8, 16]
    assert "fastest that fits: remat=none train.accumulate=16" in capsys.readouterr().out


@pytest.mark.long  # the next test compiles the two stages of another system
def test_sampling_is_compiled_stage_by_stage(tmp_path, capsys):
    out = tmp_path / "report.json"
    with pytest.raises(SystemExit) as stop:
        compile_for(
            pathlib.Path(tiny_imagen.__file__), topology="v5e:2x2", generate=8, json_file=out
        )
    assert stop.value.code == 0 and "stage 2, 8 at a time" in capsys.readouterr().out
    assert set(json.loads(out.read_text())) == {"stage 1", "stage 2"}


def test_of_a_recipe_that_joins_stages_each_is_compiled(tmp_path, capsys):
    recipe, out = pathlib.Path(tiny_muse.__file__), tmp_path / "report.json"
    with pytest.raises(SystemExit) as stop:
        compile_for(recipe, topology="v5e:2x2", mesh="fsdp=4", json_file=out)
    assert stop.value.code == 0 and "the step of superres:\nv5e:2x2: 4 chips" in (
        capsys.readouterr().out
    )
    reports = json.loads(out.read_text())
    assert list(reports) == ["tokenizer", "base", "superres"]
    assert all(one["fits"] and one["mesh"] == {"fsdp": 4} for one in reports.values())
    with pytest.raises(SystemExit) as stop:
        compile_for(recipe, topology="v5e:2x2", generate=8, json_file=out)
    assert stop.value.code == 0 and "base images, 8 at a time" in capsys.readouterr().out
    assert list(json.loads(out.read_text())) == ["base images", "superres images"]
    with pytest.raises(UserError, match="search is given for MuseTask, which joins"):
        compile_for(recipe, topology="v5e:2x2", search=True)


def test_a_search_beside_sampling_is_refused():
    with pytest.raises(UserError, match="search is of the training step"):
        compile_for(pathlib.Path(tiny.__file__), topology="v5e:2x2", search=True, generate=2)


def test_a_system_that_lives_elsewhere_compiles_too(tmp_path, capsys):
    recipe, out = pathlib.Path(toy.__file__), tmp_path / "report.json"
    compile_for(recipe, topology="v5e:2x2", mesh="data=2,fsdp=2", json_file=out)
    assert json.loads(out.read_text())["fits"]
    with pytest.raises(SystemExit) as stop:
        compile_for(recipe, topology="v5e:2x2", generate=8)
    assert stop.value.code == 0 and "images, 8 at a time" in capsys.readouterr().out


def test_the_search_names_the_fastest(capsys, monkeypatch):
    monkeypatch.setattr(search, "POLICIES", ("full",))
    monkeypatch.setattr(search, "_TENSOR", (2,))
    compile_for(
        pathlib.Path(tiny.__file__), topology="v5e:2x2", mesh="data=2,tensor=2", search=True
    )
    told = capsys.readouterr().out
    assert "remat=full train.accumulate=1" in told
    assert "--mesh fsdp=2,tensor=2 remat=full train.accumulate=1" in told
    assert "fastest that fits: " in told


def test_a_mesh_that_does_not_fit_is_refused_in_one_sentence():
    """libtpu has more to say of a machine without TPUs, unless it is told that there is nothing to
    look for.
    """
    words = ["compile", tiny.__file__, "--topology", "v5e:2x2", "--mesh", "data=3"]
    command = [sys.executable, "-m", "t2i_jax.cli.main", *words]
    elsewhere = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_PLATFORMS", "TPU_"))
    }
    done = subprocess.run(command, env=elsewhere, capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and said.startswith("t2i: mesh=data=3 does not fit 4 device(s); ")
    assert "INVALID_ARGUMENT" not in done.stderr and "Trace" not in done.stderr
