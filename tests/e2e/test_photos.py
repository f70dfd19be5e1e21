"""Real photographs, cut into JPEG files with captions beside them, through Parti's recipe for them,
a cascade, Muse and DALL-E 2.
"""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import runs
from tests.e2e import tiny_dalle2, tiny_imagen, tiny_muse
from tests.e2e.command import inside, pictures

_RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "parti" / "photos.py"
_SIDE = 160  # of a piece, in pixels; the photographs are 427 x 640
_SMALLER = [
    "data.image_size=32",
    "train.steps=3",
    "train.batch_size=8",
    "tokenizer.data.image_size=32",
    "tokenizer.train.steps=4",
    "tokenizer.train.batch_size=8",
    "evaluation.pictures=4",
    "evaluation.preview=8",
    "task.model.dim=16",
    "task.model.depth=1",
    "task.model.mlp_dim=16",
    "task.text.dim=16",
    "task.text.depth=1",
    "task.text.mlp_dim=16",
    "task.tokenizer.image_size=32",
    "tokenizer.task.model.image_size=32",
    "tokenizer.task.model.dim=16",
    "tokenizer.task.model.layers=1",
    "tokenizer.task.model.codebook_size=16",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A temple and a flower, eight pieces of each.

    A file that is no JPEG, a picture whose caption is blank.
    """
    from sklearn.datasets import load_sample_images

    folder, samples = tmp_path_factory.mktemp("photos"), load_sample_images()
    for name, photo in zip(("temple", "flower"), samples.images, strict=True):
        for i in range(8):
            top, left = (i // 4) * 260, (i % 4) * 155
            piece = photo[top : top + _SIDE, left : left + _SIDE]
            Image.fromarray(piece).save(folder / f"{name}{i}.jpg", quality=90)
            (folder / f"{name}{i}.txt").write_text(f"part {i} of a photograph of a {name}\n")
    (folder / "broken.jpg").write_bytes(b"this is no JPEG")
    (folder / "broken.txt").write_text("a temple that can't be seen")
    Image.new("RGB", (50, 40)).save(folder / "unnamed.png")
    (folder / "unnamed.txt").write_text("  ")
    return folder


def test_photographs_are_trained_on_and_painted(photos, tmp_path):
    sources = f"data.source=folder:{photos}", f"tokenizer.data.source=folder:{photos}"
    stopped = inside(
        "train", _RECIPE, *sources, *_SMALLER, "--workdir", tmp_path / "stopped", status=2
    )
    assert re.search(
        r"^t2i: .*broken.jpg.* raise data.max_bad_rate\.$", stopped.stderr.splitlines()[-1]
    )
    allowed = "data.max_bad_rate=0.2", "tokenizer.data.max_bad_rate=0.2"
    inside("train", _RECIPE, *sources, *_SMALLER, *allowed, "--workdir", tmp_path / "run")
    inside(
        "sample",
        tmp_path / "run",
        "a photograph of a flower",
        "--count",
        2,
        "--out",
        tmp_path / "out",
    )
    for i in range(2):
        picture = np.asarray(Image.open(tmp_path / "out" / f"000-{i:02d}.png"))
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    tokenizer = t2i.load(tmp_path / "run" / "tokenizer")
    pieces = np.stack(
        [
            np.asarray(Image.open(path).resize((32, 32)))
            for path in sorted(photos.glob("*[0-9].jpg"))
        ]
    )
    again = np.asarray(tokenizer.decode(tokenizer.encode(pieces)))
    assert again.shape == pieces.shape and again.std() > 0


@pytest.mark.long
def test_a_cascade_is_trained_on_them_and_repairs_one(photos, tmp_path):
    source = (
        f"data.source=folder:{photos}",
        "data.max_bad_rate=0.2",
        "evaluation.completions=0",
        "evaluation.judge=None",
    )
    inside("train", tiny_imagen.__file__, *source, "--workdir", tmp_path / "run")
    inside(
        "sample",
        tmp_path / "run",
        "a photograph of a flower",
        "--count",
        2,
        "--steps",
        2,
        "--out",
        tmp_path / "out",
    )
    made = list(pictures(tmp_path / "out").values())
    assert [picture.shape for picture in made] == [(16, 16, 3)] * 2 and made[0].std() > 0
    left = np.uint8([255, 0]).repeat(80)
    Image.fromarray(np.tile(left, (160, 1))).save(tmp_path / "mask.png")
    inside(
        "sample",
        tmp_path / "run",
        "a photograph of a temple",
        "--init",
        photos / "temple0.jpg",
        "--mask",
        tmp_path / "mask.png",
        "--steps",
        2,
        "--out",
        tmp_path / "repaired",
    )
    assert pictures(tmp_path / "repaired")["000-00.png"].shape == (16, 16, 3)


@pytest.mark.long
def test_muse_is_trained_on_them_and_completes_one(photos, tmp_path):
    """Its tokenizer, the base and the super-resolution."""
    every = (f"*.data.source=folder:{photos}", "*.data.max_bad_rate=0.2")
    own = (f"data.source=folder:{photos}", "data.max_bad_rate=0.2", "evaluation.judge=None")
    own = (*own, "evaluation.completions=0")
    run = tmp_path / "run"
    inside("train", tiny_muse.__file__, *own, *every, "--workdir", run)
    for part in ("tokenizer", "base", "superres"):
        recipe = runs.load_run_recipe(run / part)
        assert recipe.data.source == f"folder:{photos}" and (run / part / "report.html").exists()
    left = np.uint8([255, 0]).repeat(_SIDE // 2)
    Image.fromarray(np.tile(left, (_SIDE, 1))).save(tmp_path / "mask.png")
    photo = ("--init", photos / "temple0.jpg")
    for name, given in {
        "captioned": (run, "a photograph of a flower"),
        "completed": (run, "a temple", *photo, "--mask", tmp_path / "mask.png", "--feather", 0),
        "changed": (run, "a flower", *photo, "--strength", 0.5),
        "larger": (run / "superres", "a temple", "--cond", photos / "temple0.jpg"),
    }.items():
        inside("sample", *given, "--count", 2, "--out", tmp_path / name)
        made = list(pictures(tmp_path / name).values())
        assert [picture.shape for picture in made] == [(16, 16, 3)] * 2, name
    kept = pictures(tmp_path / "completed")["000-00.png"][:, :8]
    assert kept.std() > 5  # the temple's left half, and no blank


@pytest.mark.long
def test_dalle2_is_trained_on_them_and_varies_one(photos, tmp_path):
    """CLIP, prior and decoder, and what is done with an image of one's own."""
    every = (f"*.data.source=folder:{photos}", "*.data.max_bad_rate=0.2")
    own = (f"data.source=folder:{photos}", "data.max_bad_rate=0.2")
    run, steps = tmp_path / "run", ("--steps", 2, "--prior-steps", 2, "--count", 2)
    inside("train", tiny_dalle2.__file__, *own, *every, "evaluation.judge=None", "--workdir", run)
    for part in ("clip", "prior", "decoder"):
        recipe = runs.load_run_recipe(run / part)
        assert recipe.data.source == f"folder:{photos}" and (run / part / "report.html").exists()
    one, two = photos / "temple0.jpg", photos / "flower0.jpg"
    for name, given in {
        "captioned": ("a photograph of a flower",),
        "varied": ("--image", one),
        "blended": ("--image", one, "--image", two, "--blend", 0.5),
        "edited": ("a photograph of a flower", "--image", one, "--instead-of", "a temple"),
    }.items():
        inside("sample", run, *given, *steps, "--out", tmp_path / name)
        made = list(pictures(tmp_path / name).values())
        assert [picture.shape for picture in made] == [(16, 16, 3)] * 2, name
    told = t2i.load(run).nearest([one, two], ["a temple", "a flower"])
    assert set(told) <= {"a temple", "a flower"}
