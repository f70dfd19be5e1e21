"""Every notebook runs from its first cell to its last, at toy size, with nothing at hand but what
its first cell installs.
"""

import importlib.machinery
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import nbclient
import nbformat
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import t2i_jax as t2i
from t2i_jax.config import differences, to_dict
from t2i_jax.runs.recipe import load_recipe

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_NOTEBOOKS = sorted((_ROOT / "notebooks").glob("*.ipynb"))
# Values of the form fields at toy size.
_TOY = {
    "TOKENIZER_STEPS": "2",
    "STEPS": "2",
    "TUNING_STEPS": "1",
    "SUPERRES_TOKENIZER_STEPS": "1",
    "SUPERRES_STEPS": "1",
    "CLIP_STEPS": "2",
    "PRIOR_STEPS": "2",
    "DECODER_STEPS": "2",
    "counts": "[1]",
    "SIZE": "16",
    "IMAGES": '"drawings.zip"',
    "WORD": '"red"',
}
# Sizes of networks and batches at toy size, wherever a cell names them.
_SMALLER = {
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 32,
    "codebook_size": 64,
    "dim_text": 16,
    "dim_image": 16,
    "dim_latent": 16,
    "cond_dim": 16,
    "num_resnet_blocks": 0,
    "attn_heads": 1,
    "attn_dim_head": 8,
    "text_enc_depth": 1,
    "visual_enc_depth": 1,
    "batch_size": 8,
    "pictures": 10,
    "edit_steps": 2,
}
# What a step mostly compiles, and how long a sampler takes; other tests have all of it.
_QUICK = {
    "ema_decay=0.98": "ema_decay=0.0",
    "ema_decay=0.99": "ema_decay=0.0",
    'name="muon"': 'name="adamw"',
    "steps=24)": "steps=2)",
    "dim_mults=(1, 2)": "dim_mults=(1,)",
    "init_cross_embed_kernel_sizes=(3, 7)": "init_cross_embed=False",
    "text_at_levels=True, add_text_to_time=True, self_attn=True": "attend_at_middle=False",
    "strengths = (0.3, 0.5, 0.7, 0.9)": "strengths = (0.5,)",
}
_BLOCKER = """
import sys


class _NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _NotInstalled())
"""


def _needed(names):
    """The distributions that come with these, extras left out."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(need.name)
    return found


@pytest.fixture(scope="module")
def only_installed(tmp_path_factory):
    """A folder for PYTHONPATH with which Python finds only what the installation brings, and what a
    notebook's kernel needs.
    """
    allowed = _needed(["t2i_jax", "ipykernel", "pip", "setuptools"])
    homes = importlib.metadata.packages_distributions()
    blocked = sorted(
        module
        for module, owners in homes.items()
        if not {owner.lower().replace("_", "-") for owner in owners} & allowed
    )
    assert "torch" in blocked and "jax" not in blocked
    folder = tmp_path_factory.mktemp("only")
    (folder / "sitecustomize.py").write_text(f"BLOCKED = frozenset({blocked!r})\n{_BLOCKER}")
    return folder


def _drawings(folder):
    """A zip file of captioned images."""
    inside = folder / "drawings"
    inside.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "white") * 6):
        pixels = np.full((20, 24, 3), 255, np.uint8)
        pixels[4 + i % 5 : 16, 6:18] = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        Image.fromarray(pixels).save(inside / f"{i:02d}.png")
        (inside / f"{i:02d}.txt").write_text(f"{colour} heart {i}")
    shutil.make_archive(str(folder / "drawings"), "zip", inside)
    shutil.rmtree(inside)


def _at_toy_size(source):
    for name, value in _TOY.items():
        source = re.sub(rf"^{name} = [^#]*(?=#@param)", f"{name} = {value}  ", source, flags=re.M)
    for name, value in _SMALLER.items():
        source = re.sub(rf"\b{name}=\d+", f"{name}={value}", source)
    for shown, run in _QUICK.items():
        source = source.replace(shown, run)
    return source


def _images(notebook):
    return [
        out["data"]["image/png"]
        for cell in notebook.cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]


def test_there_are_notebooks():
    names = {path.stem for path in _NOTEBOOKS}
    assert names == {"dalle2_embeddings", "muse_editing", "quickstart_colab", "your_own_images"}


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch, only_installed):
    notebook = nbformat.read(path, as_version=4)
    shown = len(_images(notebook))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = _at_toy_size(cell.source)
    _drawings(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(only_installed), str(_ROOT)]))
    monkeypatch.setenv(
        "PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    )
    client = nbclient.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert len(_images(notebook)) >= 5
    assert shown == len(_images(notebook)), "it is not committed as executed"


def _cell(stem, text):
    """The source of the one cell of a notebook that has `text`."""
    cells = nbformat.read(_ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    [source] = [cell.source for cell in cells if text in cell.source]
    return source


@pytest.mark.parametrize("stem", [path.stem for path in _NOTEBOOKS])
def test_a_folder_named_like_the_package_is_not_taken_for_it(tmp_path, monkeypatch, stem):
    monkeypatch.chdir(tmp_path)
    spec, found = importlib.machinery.ModuleSpec("t2i_jax", None), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "t2i_jax" else found(name)
    )
    done, started = types.SimpleNamespace(returncode=0), []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: started.append(words) or done)
    exec(_cell(stem, "#@title Install"), {})
    assert [words[-1] for words in started] == ["git+https://github.com/OWNER/t2i_jax"]


def _where(images):
    told = {"pathlib": pathlib}
    exec(
        _cell("your_own_images", "#@title Where").replace('IMAGES = ""', f"IMAGES = {images!r}"),
        told,
    )
    return told


def test_images_that_are_not_there_are_named_and_a_zip_file_is_known_by_any_ending(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for images in ("none.zip", "none"):
        with pytest.raises(ValueError, match=f"IMAGES='{images}' is not there: "):
            _where(images)
    _drawings(tmp_path)
    pathlib.Path("drawings.zip").rename("drawings.ZIP")
    (tmp_path / "unpacked" / "drawings").mkdir(parents=True)
    (tmp_path / "unpacked" / "drawings" / "old.png").touch()
    folder = _where("drawings.ZIP")["folder"]
    assert len(list(folder.iterdir())) == 48 and not (folder / "old.png").exists()


def test_other_images_and_another_size_have_a_run_and_an_overview_of_their_own(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    source, runs = _cell("your_own_images", "#@title The recipe"), set()
    for images in ("cats", "dogs"):
        pathlib.Path(images).mkdir()
        for size in (32, 64):
            told = _where(images)
            exec(source.replace("SIZE = 32", f"SIZE = {size}"), told)
            runs.add(told["workdir"])
    assert len(runs) == 4

    said = types.SimpleNamespace(stdout="images: 2", stderr="")
    pathlib.Path("contact_sheet.png").touch()  # of other images; the command would keep it
    told["subprocess"] = types.SimpleNamespace(run=lambda *_, **__: said)
    exec(_cell("your_own_images", '"inspect"'), told)
    assert not pathlib.Path("contact_sheet.png").exists()


@pytest.mark.parametrize("stem", ["quickstart_colab", "your_own_images"])
def test_a_run_that_trained_on_is_exported_anew(tmp_path, monkeypatch, capsys, stem):
    monkeypatch.chdir(tmp_path)
    shown = []
    system = types.SimpleNamespace(generate=lambda *_, **__: None)
    told = {
        "pathlib": pathlib, "WORKDIR": "runs/one", "workdir": pathlib.Path("runs/one"),
        "captions": [], "options": None, "seed": 0, "show": lambda *_, **__: None,
        "t2i": types.SimpleNamespace(load=lambda path: shown.append(str(path)) or system),
        "runs": types.SimpleNamespace(export=lambda _, out: out.mkdir()),
    }  # fmt: skip
    for steps in (1, 2, 2):
        assert capsys.readouterr().out == ""
        exec(_cell(stem, "runs.export("), {**told, "STEPS": steps})
    assert shown == ["one_1_steps", "one_2_steps", "one_2_steps"]
    assert capsys.readouterr().out == "one_2_steps was exported before, and stays as it is.\n"


def test_the_recipe_of_dalle2_is_the_one_of_configs():
    shown = _cell("dalle2_embeddings", "#@title The recipe")
    recipe = load_recipe(_ROOT / "configs" / "dalle2" / "shapes.py")
    told = {"t2i": t2i, "data": recipe.data}
    exec(shown, told)
    for name, part in recipe.parts.items():
        own = told["recipe"].parts[name]
        for field in ("task", "data", "train"):
            pair = (to_dict(getattr(one, field)) for one in (own, part))
            found = [line for line in differences(*pair) if not line.startswith("eval_every")]
            assert not found, f"{name}.{field}"


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_its_form_is_that_of_colab(path):
    cells = nbformat.read(path, as_version=4).cells
    assert "colab-badge.svg" in cells[0].source and "minutes" in cells[0].source
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert code[0].startswith("#@title Install") and "#@param" in code[0]
    assert "jax.devices()" in code[1]
    assert all(cell.get("execution_count") for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_shows_is_short_and_names_no_machine(path):
    assert path.stat().st_size < 400_000
    for cell in nbformat.read(path, as_version=4).cells:
        shown = [out for out in cell.get("outputs", []) if "image/png" not in out.get("data", {})]
        text = "".join(out.get("text", "") + str(out.get("data", "")) for out in shown)
        assert text.count("\n") < 40 and not re.search("/(home|root|tmp|work|Users)/", text), text
        assert all(out.output_type != "error" for out in shown)
