"""Every notebook runs from its first cell to its last, at toy size, with nothing at hand but what
its first cell installs.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
import sys

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


def test_the_recipe_of_dalle2_is_the_one_of_configs():
    cells = nbformat.read(_ROOT / "notebooks" / "dalle2_embeddings.ipynb", as_version=4).cells
    [shown] = [cell.source for cell in cells if cell.source.startswith("#@title The recipe")]
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
