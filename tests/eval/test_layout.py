"""Folders for other scorers: the names that their readers take apart, grids, going on."""

import json

import numpy as np
import pytest
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.eval.layout import cells_of, check, grid_of, write
from t2i_jax.eval.prompts import PromptSet, read


def images_of(prompts, side=4):
    def make(place):
        count = prompts.images_per_prompt
        images = np.zeros((count, side, side, 3), np.uint8)
        images[..., 0], images[..., 1] = place, np.arange(count)[:, None, None]
        return images

    return make


def geneval(folder):
    path = folder / "metadata.jsonl"
    rows = [{"tag": "colors", "include": [], "prompt": text} for text in ("a red cup", "a cat")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(f"geneval:{path}"), rows


def test_geneval(tmp_path):
    prompts, rows = geneval(tmp_path)
    out = tmp_path / "out"
    assert len(write(out, prompts, images_of(prompts))) == 10
    # as GenEval's reader goes through the folder
    for place, row in enumerate(rows):
        home = out / f"{place:05d}"
        assert json.loads((home / "metadata.jsonl").read_text()) == row
        files = sorted((home / "samples").iterdir())
        assert [file.name for file in files] == [f"{n:04d}.png" for n in range(4)]
        for number, file in enumerate(files):
            assert np.asarray(Image.open(file))[0, 0].tolist() == [place, number, 0]


def test_dpg_grids_are_cut_by_its_scorer_into_the_images(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "17.txt").write_text("a long text")
    prompts = read(f"dpg:{tmp_path / 'prompts'}")
    write(tmp_path / "out", prompts, images_of(prompts))
    image, side = Image.open(tmp_path / "out" / "17.png"), 4
    assert image.size == (8, 8)
    corners = ((0, 0), (side, 0), (0, side), (side, side))  # left, top, as the scorer crops
    for number, (left, top) in enumerate(corners):
        crop = np.asarray(image.crop((left, top, left + side, top + side)))
        assert (crop[..., 1] == number).all()


def test_compbench_names_hold_prompt_and_number(tmp_path):
    (tmp_path / "color_val.txt").write_text("a red book\na blue cup\n")
    (tmp_path / "shape_val.txt").write_text("a round plate\n")
    prompts = read(f"t2i-compbench:{tmp_path}")
    write(tmp_path / "out", prompts, images_of(prompts))
    names = [file.name for file in (tmp_path / "out" / "color" / "samples").iterdir()]
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))  # as its scorer does
    assert [name.split("_")[0] for name in names] == ["a red book"] * 10 + ["a blue cup"] * 10
    assert names[10] == "a blue cup_000010.png"
    assert (tmp_path / "out/shape/samples/a round plate_000000.png").is_file()


def test_a_call_that_was_stopped_goes_on(tmp_path):
    prompts, _ = geneval(tmp_path)
    out, make, asked = tmp_path / "out", images_of(prompts), []

    def stopping(place):
        if place == 1:
            raise KeyboardInterrupt
        return make(place)

    with pytest.raises(KeyboardInterrupt):
        write(out, prompts, stopping)
    (out / "00000/samples/0002.png").unlink()
    written = write(out, prompts, lambda place: asked.append(place) or make(place))
    assert asked == [0, 1] and len(written) == 1 + 4
    assert write(out, prompts, stopping) == []
    assert len([path for path in out.rglob("*") if path.is_file()]) == 10


def test_grid_of_four():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    assert grid_of(images)[::2, ::3, 0].tolist() == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(cells_of(grid_of(images), 4), images)


def test_what_a_scorer_could_not_read_is_refused(tmp_path):
    (tmp_path / "color_val.txt").write_text("a red and/or blue book\n")
    prompts = read(f"t2i-compbench:{tmp_path}")
    with pytest.raises(UserError, match="'color/00000' holds '/'"):
        write(tmp_path / "out", prompts, images_of(prompts))
    (tmp_path / "color_val.txt").write_text("a" * 250 + "\n")
    with pytest.raises(UserError, match="file name of 261 bytes"):
        check(tmp_path / "out", read(f"t2i-compbench:{tmp_path}"))
    prompts, _ = geneval(tmp_path)
    with pytest.raises(UserError, match="4 images"):
        write(tmp_path / "out", prompts, lambda place: np.zeros((3, 4, 4, 3), np.uint8))
    plain = PromptSet("file", "f.txt", "", "all", prompts.prompts)
    with pytest.raises(UserError, match="layout"):
        write(tmp_path / "out", plain, images_of(plain))
