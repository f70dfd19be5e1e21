"""Paths as people write them: each works, or is refused in one sentence before anything is made."""

import os
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import paths, runs
from t2i_jax.cluster import lock
from t2i_jax.data.columns import add_column, is_wanted
from t2i_jax.data.pack import pack
from t2i_jax.data.shapes import Shapes
from t2i_jax.data.source import open_source
from t2i_jax.errors import UserError
from t2i_jax.files import replacing
from t2i_jax.runs import folder
from t2i_jax.runs.recipe import load_recipe
from t2i_jax.text.tokenizer import load as load_tokenizer
from t2i_jax.train.stored import load_params


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("a file")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


_REFUSED = {
    "": "is empty",
    "gs://bucket/run": "gs: is not supported",
    "s3://bucket/run": "s3: is not supported",
    "https://example.com/run": "https: is not supported",
    "file:///tmp/run": "is the address of a file and no path; give '/tmp/run'",
    "file:/tmp/run": "is the address of a file and no path; give '/tmp/run'",
    "file://localhost/tmp/my%20run#2": "give '/tmp/my run#2'",
    "a\0b": "null character",
    "n" * 300: "a name of 300 bytes",
    "\u00e9" * 130: "a name of 260 bytes",
    "x/" * 3000: "longer than 4096 bytes",
    "file/run": "leads through 'file', a file",
    "file/run/deeper": "leads through 'file', a file",
    "~nobody-of-this-name/run": "a user who is not known here",
    "\ud800": "=",
}
_RECIPE = t2i.Recipe(
    task=t2i.TokenizerTask(t2i.VitVQGanVAE(dim=8, image_size=8, patch_size=4, layers=1, heads=1)),
    data=t2i.DataConfig(source="shapes", image_size=8),
    train=t2i.TrainConfig(steps=1, batch_size=2),
)
_TAKES = {  # every function of the Python API that is given a path
    "train": lambda path: runs.train(_RECIPE, path),
    "load": t2i.load,
    "read": folder.read,
    "export": lambda path: runs.export(path, "new"),
    "load_params": load_params,
    "load_recipe": load_recipe,
    "import": lambda path: runs.import_torch(path, "new"),
    "import into": lambda path: runs.import_torch("file", path),
    "export_torch": lambda path: runs.export_torch(path, "new.pt"),
    "pack": lambda path: pack(Shapes(8, "train", 0), path, name="shapes"),
    "is_wanted": lambda path: is_wanted(path, "text", {}),
    **{
        kind: lambda path, kind=kind: open_source(f"{kind}:{path}", image_size=8)
        for kind in ("folder", "arrayrecord")
    },
}


@pytest.mark.parametrize("name", _TAKES)
def test_a_path_that_cannot_be_is_one_sentence_wherever_it_is_given(name):
    for path, sentence in _REFUSED.items():
        if path or name not in ("folder", "arrayrecord"):  # "does not say which"
            with pytest.raises(UserError, match=sentence) as refused:
                _TAKES[name](path)
            assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 600
    assert [path.name for path in pathlib.Path().iterdir()] == ["file"]


@pytest.mark.parametrize("path", [None, 3, ["runs"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(UserError, match="run=.* is no path; give a text"):
        runs.load(path)


def test_a_run_is_refused_where_a_file_is_or_nothing_can_be_made(tmp_path):
    with pytest.raises(UserError, match="workdir='file' is not a folder"):
        runs.train(_RECIPE, "file")
    os.symlink("circle", "circle")
    with pytest.raises(UserError, match="workdir='circle' can't be reached"):
        runs.train(_RECIPE, "circle")
    os.symlink(tmp_path / "nowhere" / "deep", "dangling")
    with pytest.raises(UserError, match="='dangling' is a link to .*deep', which is not there"):
        runs.train(_RECIPE, "dangling")
    with pytest.raises(UserError, match="out='dangling' is a link to .*deep', which is not there"):
        paths.folder("out", "dangling")
    with pytest.raises(UserError, match="workdir='dangling/run' lies below .*dangling', no folder"):
        runs.train(_RECIPE, "dangling/run")
    pathlib.Path("begun").mkdir()
    os.symlink(tmp_path / "nowhere" / "disk", "begun/checkpoints")
    for use in (lambda run: runs.train(_RECIPE, run), runs.load):
        with pytest.raises(UserError, match="='begun/checkpoints' is a link to .*disk', which is"):
            use("begun")
    assert os.listdir("begun") == ["checkpoints"]
    with pytest.raises(UserError, match="workdir='/proc/run'"):
        runs.train(_RECIPE, "/proc/run")
    with pytest.raises(UserError, match="is not UTF-8"):
        runs.train(_RECIPE, b"caf\xe9")


def test_a_tilde_is_the_home_folder_everywhere(tmp_path):
    home = tmp_path / "home"
    pack(Shapes(8, "train", 0), "~/packed", name="shapes")
    assert (home / "packed" / "manifest.json").is_file()
    assert len(open_source("arrayrecord:~/packed", image_size=8)) == len(Shapes(8, "train", 0))
    assert is_wanted("~/packed", "text", {})
    with pytest.raises(UserError, match=f"tokenizer='{home}/no' has neither"):
        load_tokenizer("~/no")
    with pytest.raises(UserError, match=f"webdataset='{home}/no.tar' matches no file"):
        open_source("webdataset:~/no.tar", image_size=8)
    assert [path.name for path in pathlib.Path().iterdir()] == ["file"]


def test_a_folder_that_another_command_is_writing_is_refused(tmp_path):
    out, few = tmp_path / "deep" / "system", Shapes(8, "train", 0, length=4)
    writers = (
        lambda: pack(few, out, name="shapes"),
        lambda: folder.write_system(out, _RECIPE, {}, {}, {}),
    )
    with lock.writing("out", out):
        for write in writers:
            with pytest.raises(UserError, match=f"out='{out}' is in use by process {os.getpid()} "):
                write()
    pack(few, out, name="shapes")
    with pytest.raises(UserError, match="exists and is not empty"):
        writers[1]()
    column = {"about": {}, "rows": [{"tokens": np.zeros(4, np.int32)}] * 4}
    with lock.writing("packed", out / "tokens"), pytest.raises(UserError, match="is in use by"):
        add_column(out, "tokens", **column)
    assert "tokens" in add_column(out, "tokens", **column)["columns"]
    assert [path.name for path in out.parent.iterdir()] == ["system"]
    assert not list(out.glob("*lock*"))


_WRITERS = {  # of folders that appear when all of them is written
    "pack": lambda out: pack(Shapes(8, "train", 0, length=4), out, name="shapes"),
    "export": lambda out: folder.write_system(paths.new_folder("out", out), _RECIPE, {}, {}, {}),
}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("write", _WRITERS.values(), ids=_WRITERS)
def test_what_is_written_to_a_link_lies_where_it_leads(tmp_path, write, there):
    (tmp_path / "large").mkdir()
    target, out = tmp_path / "large" / "set", tmp_path / "link"
    if there:
        target.mkdir()
    out.symlink_to(target)
    before = sorted(path.name for path in tmp_path.iterdir())
    write(out)
    assert out.is_symlink() and any(target.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert [path.name for path in target.parent.iterdir()] == ["set"]
    with pytest.raises(UserError, match="exists and is not empty"):
        write(out)


@pytest.mark.parametrize("write", _WRITERS.values(), ids=_WRITERS)
def test_a_mount_point_is_refused_before_anything_is_written(tmp_path, monkeypatch, write):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    monkeypatch.setattr(paths, "_mount_points", lambda: {tmp_path / "out"})
    monkeypatch.setattr("t2i_jax.data.pack.replacing", lambda _: pytest.fail("it was written"))
    monkeypatch.setattr("t2i_jax.runs.folder.replacing", lambda _: pytest.fail("it was written"))
    for out in (tmp_path / "out", tmp_path / "link"):
        with pytest.raises(
            UserError, match=r"is a mount point, .* name a new one in it, as '.*new"
        ):
            write(out)


def test_linux_tells_its_mount_points():
    found = paths._mount_points()
    assert all(place.is_absolute() for place in found)
    assert not found or pathlib.Path("/proc") in found and pathlib.Path("/") in found


def test_a_file_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    assert paths.new_file("json", "deep/new.json") == pathlib.Path("deep/new.json")
    assert paths.new_file("json", "file") == pathlib.Path("file")
    with pytest.raises(UserError, match="^json='.*' is a folder; name a file in it.$"):
        paths.new_file("json", tmp_path)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: pathlib.Path(path).is_dir() and access(path, mode)
    )
    with pytest.raises(UserError, match="^json='file' is there and can't be written; name another"):
        paths.new_file("json", "file")


@hypothesis.given(st.text() | st.text("~/.[]*? a", min_size=1))
@hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck))
def test_any_text_is_a_folder_that_can_be_made_or_is_refused(tmp_path, text):
    hypothesis.assume(not text.startswith("/") and ".." not in text)
    try:
        found = paths.folder("workdir", text)
        paths.make("workdir", found)
    except UserError as error:
        assert "workdir=" in str(error) and len(str(error).splitlines()) == 1
    else:
        assert found.is_dir() and os.path.realpath(found).startswith(os.path.realpath(tmp_path))


@pytest.mark.parametrize("name", ["n" * 250 + ".json", "\u65e5" * 85, "n" * 255])
def test_a_long_name_has_room_for_its_temporary_one(tmp_path, name):
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == pathlib.Path(name).suffix
    assert (tmp_path / name).read_text() == "whole"
