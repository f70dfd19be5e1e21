"""`t2i evaluate compare`: two results, image by image."""

import shutil

import numpy as np
from PIL import Image

from tests.e2e.command import inside, refused
from tests.runs import scoring_toys

_toys = scoring_toys.in_place


def test_two_results_are_compared_image_by_image(folders, measured, tmp_path):
    made, real = folders
    shutil.copytree(made, tmp_path / "worse")
    for path in (tmp_path / "worse").glob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    scoring_toys.evaluate(
        (tmp_path / "worse", real), tmp_path / "w", "--metrics", "fid,clip_hessel"
    )
    told = inside("evaluate", "compare", measured[0], tmp_path / "w").stdout
    assert "clip_score_hessel_clip_toy" in told and "45 shared prompts" in told
    assert "fid_clean_inception" in told
    scoring_toys.evaluate(folders, tmp_path / "tf", "--metrics", "fid", "--mode", "tf")
    said = refused("evaluate", "compare", measured[0], tmp_path / "tf")
    assert "share no metric" in said
    assert "is missing or damaged" in refused("evaluate", "compare", made, real)


def test_images_of_two_folders_are_compared_by_their_names(folders, measured, tmp_path):
    made = shutil.copytree(folders[0], tmp_path / "made")
    for path in made.glob("000.*"):  # all others would move up by one
        path.unlink()
    command = ("evaluate", "--images", made, "--metrics", "clip", "--out")
    inside(*command, tmp_path / "out")
    told = inside("evaluate", "compare", measured[0], tmp_path / "out").stdout
    [line] = [one for one in told.splitlines() if one.startswith("clip_score_clip_toy ")]
    assert " +0 " in line and "on 44 shared prompts, without 1 image that one of them" in line
    for path in made.iterdir():
        path.rename(made / f"x{path.name}")
    inside(*command, tmp_path / "x")
    said = refused("evaluate", "compare", measured[0], tmp_path / "x")
    assert "has 0 prompts that both results hold (the first has '000.png' alone, the second" in said


def test_images_of_one_name_with_two_captions_are_no_pairs(
    folders, measured, tmp_path, monkeypatch
):
    """Nor are those whose captions are read in two ways."""
    made = shutil.copytree(folders[0], tmp_path / "made")
    (made / "003.txt").write_text("another caption")
    inside("evaluate", "--images", made, "--metrics", "clip", "--out", tmp_path / "out")
    said = refused("evaluate", "compare", measured[0], tmp_path / "out")
    assert "'003.png' is measured against one caption" in said and "(1 of 45 values)" in said
    older = shutil.copytree(measured[0], tmp_path / "older")
    (older / "marks.json").unlink()  # as earlier versions wrote results
    told = inside("evaluate", "compare", older, tmp_path / "out").stdout
    assert "on 45 shared prompts" in told
    monkeypatch.setattr(scoring_toys.ToyExtractor, "mends", True)
    inside("evaluate", "--images", folders[0], "--metrics", "clip", "--out", tmp_path / "mended")
    said = refused("evaluate", "compare", older, tmp_path / "mended")
    assert "clip_score_clip_toy" in said and "estimator.captions" in said and "mended" in said


def test_the_columns_of_a_comparison_tell_its_folders_apart(measured, tmp_path):
    one, other = (tmp_path / name / "eval" / "coco" for name in "ab")
    for home in (one, other):
        shutil.copytree(measured[0], home)
    head = inside("evaluate", "compare", one, other).stdout.splitlines()[0].split()
    assert head[1:3] == [str(one), str(other)]
    head = inside("evaluate", "compare", measured[0], other).stdout.splitlines()[0].split()
    assert head[1:3] == ["all", "coco"]
