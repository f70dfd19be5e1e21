"""A user's folder: captions from three kinds of places, images of every kind, and things that are
no images.
"""

import json

import numpy as np
import pytest
from PIL import Image

from t2i_jax.data.folder import FolderSource
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(["a.JPG", "deep/b.png", "c.webp"]):
        Image.new("RGB", (30 + i, 24), (40 * i, 90, 90)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"image\nnumber {i} \n")
    return tmp_path


def test_text_files_beside_the_images(folder):
    source = FolderSource(str(folder))
    assert [source[i]["caption"] for i in range(3)] == [
        "image number 0",
        "image number 2",
        "image number 1",
    ]
    assert source[1]["image"].shape == (24, 32, 3)
    assert source.without_image(0) == {"image": None, "caption": "image number 0"}


def test_tables_of_captions(folder):
    (folder / "captions.jsonl").write_text(
        json.dumps({"file_name": "a.JPG", "text": "from a line"}) + "\n\n"
    )
    assert [FolderSource(str(folder))[0]["caption"]] == ["from a line"]
    (folder / "captions.csv").write_text('image,caption\ndeep/b.png,"one, two"\na.JPG,three\n')
    assert [FolderSource(str(folder))[i]["caption"] for i in range(2)] == ["one, two", "three"]


def test_images_to_condition_on_are_cut_as_their_images(folder):
    rng = np.random.default_rng(0)
    for name in ("a.JPG", "deep/b.png"):
        noise = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
        noise.save((folder / name).with_suffix(".png"))
        noise.save((folder / name).with_suffix(".cond.png"))
    (folder / "a.JPG").unlink()
    assert len(FolderSource(str(folder))) == 3
    config = DataConfig(
        source=f"folder:{folder}", image_size=24, crop="random", flip=True, max_bad_rate=1.0
    )
    stream = batches(config, 8, 0, wants=("image", "cond_image"))
    for _ in range(2):
        batch = next(stream)
        np.testing.assert_array_equal(batch["image"], batch["cond_image"])
    assert stream.bad.by_reason["no .cond image"] > 0  # c.webp has none
    with pytest.raises(UserError, match="'digits' has no images to condition on; give a folder"):
        batches(DataConfig(source="digits", image_size=16), 8, 0, wants=("image", "cond_image"))


def test_hostile_folder_is_skipped_and_counted(folder):
    (folder / "dir.jpg").mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "empty.png").write_bytes(b"")
    (folder / "bytes.png").write_bytes(b"\x00" * 50)
    (folder / "latin.png").write_bytes((folder / "deep/b.png").read_bytes())
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "silent.png").write_bytes((folder / "deep/b.png").read_bytes())
    config = DataConfig(source=f"folder:{folder}", image_size=16, max_bad_rate=1.0)
    found = [
        c
        for batch in batches(config, 2, 0, wants=("image", "caption"), repeat=False)
        for c in batch["caption"]
    ]
    assert sorted(found) == [f"image number {i}" for i in range(3)]
    without = batches(config, 2, 0, wants=("image",), repeat=False)
    assert sum(len(batch["image"]) for batch in without) == 5  # a tokenizer needs no captions


def test_too_many_bad_files_stop_the_run_and_are_named(folder):
    for i in range(30):
        (folder / f"bad{i}.png").write_bytes(b"no")
    config = DataConfig(source=f"folder:{folder}", image_size=16)
    with pytest.raises(UserError, match=r"bad\d+\.png"):
        list(batches(config, 2, 0, wants=("image", "caption"), repeat=False))


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("captions.csv", "image,words\na,b\n", "columns image, words"),
        ("captions.jsonl", "{broken\n", "line 1"),
        ("captions.jsonl", '{"text": "no image"}\n', "names no image"),
    ],
)
def test_a_broken_table_is_refused(folder, name, text, says):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=says):
        FolderSource(str(folder))


def test_no_folder_and_no_images(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        FolderSource(str(tmp_path / "none"))
    with pytest.raises(UserError, match="holds no images"):
        FolderSource(str(tmp_path))
