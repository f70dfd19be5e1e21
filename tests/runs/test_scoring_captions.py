"""Captions of images that are there: whose they are, and what of them a network cuts."""

import json

import numpy as np
import pytest
from PIL import Image

from t2i_jax.data.pack import side_by_side
from t2i_jax.data.table import ENDINGS, FILE_KEYS
from t2i_jax.errors import UserError
from t2i_jax.eval import layout, prompts
from t2i_jax.runs.scoring import pairing
from t2i_jax.runs.scoring.sources import SourceImages, in_grids
from tests.e2e.command import inside, refused
from tests.runs import scoring_toys
from tests.runs.scoring_toys import with_rows, write_images

_toys = scoring_toys.in_place


def test_captions_of_a_file_are_found_by_name_or_taken_in_order(folders, measured, tmp_path):
    made, _ = folders
    names = sorted(path.name for path in made.glob("*.png"))
    texts = [path.with_suffix(".txt").read_text() for path in sorted(made.glob("*.png"))]
    rows = [f"{name},{text},{'ab'[i % 2]}" for i, (name, text) in enumerate(zip(names, texts))]
    by_name, in_order = tmp_path / "names.csv", tmp_path / "order.txt"
    by_name.write_text("\n".join(["file,caption,category", *rows[::-1]]))
    in_order.write_text("\n".join(texts))
    found = []
    for file in (by_name, in_order):
        out = tmp_path / file.stem
        inside("evaluate", "--images", made, "--captions", file, "--metrics", "clip", "--out", out)
        found.append(scoring_toys.metrics_in(out))
    whole = scoring_toys.metrics_in(measured[0])[0]["clip_score_clip_toy"]["value"]
    assert [one[0]["clip_score_clip_toy"]["value"] for one in found] == [pytest.approx(whole)] * 2
    parts = found[0][1]["categories"]["clip_score_clip_toy"]
    assert {name: one["count"] for name, one in parts.items()} == {"a": 23, "b": 22}
    page = (tmp_path / "names" / "report.html").read_text()
    for name, one in parts.items():
        span, cells = one["interval"], f"<td>{name}</td><td>{one['value']:.4g}</td>"
        cells += f"<td>[{span['low']:.4g}, {span['high']:.4g}]</td><td>{one['count']} images</td>"
        assert "By category" in page and cells in page
    assert "By category" not in (tmp_path / "order" / "report.html").read_text()
    in_order.write_text("\n".join(texts[:-1]))
    said = refused(
        "evaluate", "--images", made, "--captions", in_order, "--metrics", "clip", "--out",
        tmp_path / "short",
    )  # fmt: skip
    assert "44 captions for 45 images" in said
    by_name.write_text("\n".join(["file,caption,category", *rows[1:], "x.png,text,a"]))
    said = refused(
        "evaluate", "--images", made, "--captions", by_name, "--metrics", "clip", "--out",
        tmp_path / "other",
    )  # fmt: skip
    assert "has no caption for 000.png" in said


@pytest.mark.parametrize("key", FILE_KEYS)
def test_every_column_that_names_an_image_pairs_captions_by_name(folders, measured, tmp_path, key):
    made, _ = folders
    rows = [
        {key: path.name, "caption": path.with_suffix(".txt").read_text()}
        for path in sorted(made.glob("*.png"))
    ]
    file = tmp_path / "names.jsonl"
    images = SourceImages(f"folder:{made}", "images")
    for before in ("", "./", " "):
        others = [{**row, key: before + row[key]} for row in rows[::-1]]
        file.write_text("\n".join(map(json.dumps, others)))
        found = pairing.paired(images, prompts.read(str(file)), "made").of_images
        assert [one.text for one, _ in found] == [row["caption"] for row in rows]
    file.write_text("\n".join(map(json.dumps, [*rows[1:], rows[1]])))
    assert "no caption for 000.png" in scoring_toys.refused_captions(
        folders, file, tmp_path / "out"
    )


@pytest.mark.parametrize("named", ["whole", "linked", "from the table", "from here"])
def test_a_table_may_name_images_by_their_paths(folders, tmp_path, monkeypatch, named):
    files = sorted(folders[0].glob("*.png"))
    monkeypatch.chdir(folders[0])
    (tmp_path / "made").symlink_to(folders[0])
    home = {
        "whole": folders[0], "linked": tmp_path / "made", "from the table": "made",
        "from here": f"../{folders[0].name}",
    }[named]  # fmt: skip
    rows = [{"file": f"{home}/{path.name}", "caption": path.stem} for path in files[::-1]]
    table = tmp_path / "names.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    images = SourceImages(f"folder:{tmp_path / 'made'}", "images")
    found = pairing.paired(images, prompts.read(str(table)), "made").of_images
    assert [one.text for one, _ in found] == [path.stem for path in files]


def test_a_name_of_a_table_that_fits_no_image_is_told(folders, tmp_path):
    names = [path.name for path in sorted(folders[0].glob("*.png"))]
    table = tmp_path / "names.csv"
    for rows, told in (
        ([name.removesuffix(".png") for name in names], "no caption for 000.png.*; 000 is of none"),
        ([f"/elsewhere/{name}" for name in names], "; /elsewhere/000.png is of none"),
        ([*names, "more.png"], "; more.png is of none"),
        ([*names, names[3]], f"; {names[3]} comes twice"),
    ):
        table.write_text("\n".join(["file,caption", *(f"{name},x" for name in rows)]))
        images = SourceImages(f"folder:{folders[0]}", "images")
        with pytest.raises(UserError, match=rf"{told}\); give one for each, with the name of its"):
            pairing.paired(images, prompts.read(str(table)), "made")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_that_names_no_images_is_never_paired_by_its_order(folders, tmp_path, ending):
    rows = [{"image_file": path.name, "caption": "x"} for path in sorted(folders[0].glob("*.png"))]
    file = tmp_path / f"captions{ending}"
    mark = "\t" if ending == ".tsv" else ","
    if ending == ".json":
        file.write_text(json.dumps(rows))
    elif "json" in ending:
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        file.write_text("\n".join(map(mark.join, [list(rows[0]), *(r.values() for r in rows)])))
    said = scoring_toys.refused_captions(folders, file, tmp_path / "out")
    assert "has the columns image_file, caption" in said and "file/file_name" in said


def test_captions_in_order_are_as_many_as_images_or_as_a_benchmark_groups_them(folders, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join("abc"))
    said = scoring_toys.refused_captions(folders, few, tmp_path / "out")
    assert "3 captions for 45 images" in said
    row = {"tag": "colors", "include": [], "prompt": "a red bench"}
    bench = tmp_path / "bench.jsonl"
    bench.write_text("\n".join([json.dumps(row)] * 3))
    known = prompts.read(f"geneval:{bench}")
    for count in (3, 12):
        numbers = [number for _, number in pairing._in_order(count, known, "made")]
        assert numbers == [*range(count // 3)] * 3
    assert "or 4 for each" in scoring_toys.refused_captions(
        folders, f"geneval:{bench}", tmp_path / "out"
    )


def _benchmark(home, kind):
    """Two prompts, of which neither the order of texts nor that of names is that of the set."""
    texts = ["two red cups", "a blue cup", "an apple"]
    if kind == "geneval":
        rows = [{"tag": "colors", "include": [], "prompt": text} for text in texts]
        (home / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return prompts.read(f"geneval:{home / 'set.jsonl'}")
    if kind == "t2i-compbench":
        (home / "color_val.txt").write_text("\n".join([*texts, texts[0]]))
        return prompts.read(f"t2i-compbench:{home / 'color_val.txt'}")
    (home / "set").mkdir()
    for name, text in zip((9, 10, "x1"), texts, strict=True):
        (home / "set" / f"{name}.txt").write_text(text)
    return prompts.read(f"dpg:{home / 'set'}")


@pytest.mark.parametrize("kind", layout.LAYOUTS)
def test_images_for_a_scorer_have_the_captions_that_they_were_made_of(tmp_path, kind):
    known = _benchmark(tmp_path, kind)
    each = known.images_per_prompt

    def made(place):
        images = np.full((each, 8, 8, 3), place, np.uint8)
        images[..., 1] = np.arange(each)[:, None, None]
        return images

    home = tmp_path / "made"
    layout.write(home, known, made)
    folders = [home, *((home / "color", home / "color" / "samples") if "comp" in kind else ())]
    for folder in folders:
        images = SourceImages(f"folder:{folder}", "images")
        found, rule = pairing.paired(images, known, "made")
        read = [tuple(images.read(row)[0, 0, :2]) for row in range(len(found))]
        assert read == [(known.prompts.index(one), number) for one, number in found]
        assert len(found) == len(known) * (1 if kind == "dpg" else each)
        assert bool(rule) == (kind != "geneval")
    path = sorted(home.rglob("*.png"))[-1]
    path.rename(home / "other.png")
    with pytest.raises(UserError, match="has 'other.png', which is of no prompt of"):
        pairing.paired(SourceImages(f"folder:{home}", "images"), known, "made")
    (home / "other.png").unlink()
    with pytest.raises(UserError, match=f"of {kind}, and .* of others; give as many of each"):
        pairing.paired(SourceImages(f"folder:{home}", "images"), known, "made")


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(11)],
        [f"image_{i}_of_11.png" for i in range(11)],
        [f"{i}/x.png" for i in range(11)],
        [f"{i:03d}-00.png" for i in range(995, 1006)],
        [f"{i:02d} {word}.png" for i, word in enumerate("kjihgfedcba")],
        ["e.png", "a10.png", "a9.png"],
    ],
)
def test_captions_in_order_are_in_that_of_the_numbers_of_files(tmp_path, capsys, names):
    for i, name in enumerate(names):
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "made" / name)
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(len(names))))
    images = SourceImages(f"folder:{tmp_path / 'made'}", "images")
    found, rule = pairing.paired(images, prompts.read(str(file)), "made")
    shown = [images.read(row)[0, 0, 0] for row in range(len(names))]
    is_numbered, told = names[0] != "e.png", capsys.readouterr().err
    wanted = shown if is_numbered else range(len(names))
    assert [one.text for one, _ in found] == [f"caption {i}" for i in wanted]
    assert bool(rule) == (is_numbered and shown != sorted(shown))
    assert ("order of the numbers in the names" in told) == bool(rule)
    assert ("letters of the names" in told and "'a10.png' before 'a9.png'" in told) != is_numbered
    if not is_numbered:  # nothing tells that they are in the order of a benchmark
        with pytest.raises(UserError, match="are not numbered .*give a table with the columns"):
            rows = ["Prompt\tCategory\tChallenge", *(f"{i}\tx\tx" for i in range(len(names)))]
            (tmp_path / "parti.tsv").write_text("\n".join(rows))
            pairing.paired(images, prompts.read(f"parti:{tmp_path / 'parti.tsv'}"), "made")


def test_images_that_are_named_by_ids_have_the_captions_of_these(tmp_path):
    (tmp_path / "set.csv").write_text("id,caption\n31,x\n7,y\n100,z\n")
    write_images(tmp_path / "made", 3)
    for i, name in enumerate((100, 31, 7)):
        (tmp_path / "made" / f"{i:03d}.png").rename(tmp_path / "made" / f"{name}.png")
    images = SourceImages(f"folder:{tmp_path / 'made'}", "images")
    found, rule = pairing.paired(images, prompts.read(f"coco:{tmp_path / 'set.csv'}"), "made")
    assert [(images.source.image_name(i), one.text) for i, (one, _) in enumerate(found)] == [
        ("100.png", "z"), ("31.png", "x"), ("7.png", "y"),
    ]  # fmt: skip
    assert rule == "by their ids"


def test_a_folder_for_genevals_scorer_is_measured_with_its_prompts(tmp_path):
    """`metadata.jsonl` beside the images has the name of a table of images, and is none."""
    rows = [{"tag": "colors", "include": [], "prompt": f"a {one} cup"} for one in ("red", "blue")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = prompts.read(f"geneval:{tmp_path / 'prompts.jsonl'}")
    made = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    layout.write(tmp_path / "made", known, lambda place: made[place])
    inside(
        "evaluate", "--images", tmp_path / "made", "--captions", f"geneval:{known.source}",
        "--metrics", "clip", "--out", tmp_path / "out",
    )  # fmt: skip
    values = json.loads((tmp_path / "out" / "values.json").read_text())["clip_score_clip_toy"]
    assert [row[:2] for row in values] == [[f"0000{i}", n] for i in range(2) for n in range(4)]


def test_an_image_that_a_table_names_in_several_rows_is_one_image(folders, measured, tmp_path):
    made, real = (with_rows(one, tmp_path / one.name, 5) for one in folders)
    told = scoring_toys.evaluate((made, real), tmp_path / "out", "--metrics", "fid,kid,pr,dc,is")
    metrics, results = scoring_toys.metrics_in(tmp_path / "out")
    whole, _ = scoring_toys.metrics_in(measured[0])
    for name, one in metrics.items():
        assert one["value"] == pytest.approx(whole[name]["value"], rel=1e-9), name
        assert one["n_reference"] in (None, 60) and one["n_generated"] == 45
    assert results["images"]["passed_over"]["further row of an image"] == 180
    assert "reference: passed over further row of an image 240\n" in told
    inside("evaluate", "reference", real, "--out", tmp_path / "real.npz")
    about = json.loads((tmp_path / "real.json").read_text())["images"]
    assert about["count"] == 60 and about["passed_over"]["further row of an image"] == 240
    out = tmp_path / "clip"
    inside("evaluate", "--images", made, "--metrics", "clip", "--out", out)
    assert scoring_toys.metrics_in(out)[0]["clip_score_clip_toy"]["n_generated"] == 5 * 45
    said = refused("evaluate", "--images", made, "--metrics", "clip,is", "--out", tmp_path / "both")
    assert "metrics=clip takes an image of" in said and "has 180 further rows of images" in said


def test_images_in_grids_have_the_values_of_the_same_images_in_files(tmp_path, monkeypatch):
    known = _benchmark(tmp_path, "dpg")
    made = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    grids = layout.write(tmp_path / "grids", known, lambda place: made[place])
    (tmp_path / "singles").mkdir()
    for i, image in enumerate(made.reshape(12, 8, 8, 3)):
        Image.fromarray(image).save(tmp_path / "singles" / f"image-{i:02d}.png")
    common = ("evaluate", "--captions", f"dpg:{known.source}", "--metrics", "clip", "--images")
    of_grids, of_singles = (*common, tmp_path / "grids"), (*common, tmp_path / "singles")
    said = refused(*of_grids, "--out", tmp_path / "a")
    assert "may be grids of 4 images" in said and "give --grid 4 or --grid 1" in said
    assert "grid=3 is no grid" in refused(*of_grids, "--out", tmp_path / "a", "--grid", 3)
    files = SourceImages(f"folder:{tmp_path / 'grids'}", "images")
    images, decoded, read = in_grids(files, 4), [], files.read
    monkeypatch.setattr(files, "read", lambda place: decoded.append(place) or read(place))
    found = {image.tobytes() for image in side_by_side(images.read, range(12))}
    assert found == {image.tobytes() for image in made.reshape(12, 8, 8, 3)}
    assert sorted(decoded) == [0, 1, 2]  # each file once, whichever threads read its images
    inside(*of_grids, "--out", tmp_path / "a", "--grid", 4)
    inside(*of_singles, "--out", tmp_path / "b")
    results = scoring_toys.metrics_in(tmp_path / "a")[1]
    assert results["images"]["grid"] == 4 and results["images"]["count"] == 12
    values = [json.loads((tmp_path / name / "values.json").read_text()) for name in "ab"]
    of_files, alone = (sorted(one["clip_score_clip_toy"]) for one in values)
    assert of_files == alone and len(alone) == 12
    said = refused(*of_grids, "--out", tmp_path / "a", "--grid", 1)
    assert "another plan (images.count: 12 -> 3; images.grid: 4 -> None)" in said
    inside(*of_singles, "--out", tmp_path / "b", "--grid", 1)  # was begun where nothing was said
    assert scoring_toys.metrics_in(tmp_path / "b")[1]["images"]["grid"] == 1
    Image.new("RGB", (8, 9)).save(grids[0])
    inside(*of_grids, "--out", tmp_path / "odd", "--grid", 4)
    [about] = scoring_toys.metrics_in(tmp_path / "odd")[1]["generated"].values()
    assert about["count"] == 8 and about["left_out"] == {"grid of odd sides": 4}


def test_captions_that_a_network_cuts_are_told_once_and_counted(tmp_path):
    made = write_images(tmp_path / "made", 5)
    for row, length in enumerate((60, 90, 65, 78, 77)):
        (made / f"{row:03d}.txt").write_text("x" * length)
    (made / "003.png").write_bytes(b"no image")  # of which nothing is measured
    common = ("evaluate", "--images", made, "--out", tmp_path / "out", "--metrics")
    told = inside(*common, "clip,clip_hessel,pickscore,clip_fid", "--reference", made).stderr
    assert [line for line in told.splitlines() if line.endswith(("cut.", "other.", "others."))] == [
        "t2i: metrics=clip,pickscore: caption 1 has 90 tokens, the last 13 are cut; so is one "
        "other.",
        "t2i: metrics=clip_hessel: caption 1 has 106 tokens, the last 29 are cut; so are 3 others.",
    ]
    assert scoring_toys.metrics_in(tmp_path / "out")[1]["cut_captions"] == {
        "clip_score_clip_toy": 1, "clip_score_hessel_clip_toy": 3, "score_pickscore_toy": 1,
    }  # fmt: skip
