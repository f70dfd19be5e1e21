"""`t2i evaluate RUN`: images of a run for prompts, killed and gone on with, guidances side by
side.
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from t2i_jax import files
from t2i_jax.errors import UserError
from t2i_jax.eval import protocol, sample_folder
from t2i_jax.runs.scoring import generate, page
from t2i_jax.systems import prompting
from tests.e2e.command import inside, refused
from tests.eval.test_prompts import coco_file
from tests.runs import scoring_toys
from tests.runs.scoring_toys import write_images
from tests.toy_system import recipe as toy

_PROMPTS = [f"a {size} {colour} circle" for size in ("small", "large") for colour in
            ("red", "green", "blue", "yellow")]  # fmt: skip
_CUP = {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": "a cup"}
_COMMAND = ("--shard-size", 3, "--batch-size", 2, "--metrics", "fid,clip", "--seed", 7)
_PROGRAM = """
import sys, time
from unittest import mock
import tests.toy_system.recipe
from t2i_jax.cli import main
from t2i_jax.runs.scoring import shards
from tests.runs import scoring_toys

class Patch:
    def setattr(self, where, value):
        mock.patch(where, value).start()

scoring_toys.use(Patch())
write = shards.ImageShards.write
def slowly(self, shard, images, lines):
    write(self, shard, images, lines)
    time.sleep(0 if shard == 0 else 60)
shards.ImageShards.write = slowly
main.main()
"""


_toys = scoring_toys.in_place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained toy, its prompts and real images."""
    home = tmp_path_factory.mktemp("toy")
    inside("train", toy.__file__, "--workdir", home / "run")
    rows = [f"{prompt}\t{prompt.split()[1]}" for prompt in _PROMPTS]
    (home / "prompts.tsv").write_text("\n".join(["prompt\tcategory", *rows]))
    write_images(home / "real", 12)
    return home


@pytest.fixture(scope="module")
def whole(run):
    """The folder of an evaluation that nobody interrupted."""
    _evaluate(run, run / "whole")
    return run / "whole"


def _words(run, out, *more):
    common = ("--prompts", run / "prompts.tsv", "--reference", run / "real", "--out", out)
    return ("evaluate", run / "run", "evaluation.options.noise=0.2", *common, *_COMMAND, *more)


def _evaluate(run, out, *more):
    return inside(*_words(run, out, *more)).stdout


def _pixels(out):
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("images/*/*.png"))]


def _results(out):
    return json.loads((out / "results.json").read_text())


def test_results_say_how_each_image_was_made(run, whole):
    results = _results(whole)
    assert results["images"]["count"] == results["prompts"]["count"] == 8
    assert results["run"]["step"] == 4 and results["run"]["recipe"]["task"]
    assert results["sampling"]["options"] == {
        "type": "ToyOptions", "guidance": 1.5, "noise": 0.2,
    }  # fmt: skip
    lines = [
        json.loads(line)
        for path in sorted(whole.glob("images/*/manifest.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == 8 and len({line["seed"] for line in lines}) == 8
    assert len({image.tobytes() for image in _pixels(whole)}) == 8
    parts = results["categories"]["clip_score_clip_toy"]
    assert {name: one["count"] for name, one in parts.items()} == {"large": 4, "small": 4}


def test_an_image_is_the_same_among_others_and_in_other_batches(run, whole, tmp_path):
    ids = [line for path in sorted(whole.glob("images/*/manifest.jsonl"))
           for line in map(json.loads, path.read_text().splitlines())]  # fmt: skip
    (tmp_path / "few.jsonl").write_text(
        "\n".join(json.dumps({"prompt": _PROMPTS[row], "id": ids[row]["prompt"]}) for row in (5, 2))
    )
    inside(
        "evaluate", run / "run", "evaluation.options.noise=0.2", "--prompts",
        tmp_path / "few.jsonl", "--out", tmp_path / "few", "--seed", 7, "--batch-size", 3,
    )  # fmt: skip
    few, all_of_them = _pixels(tmp_path / "few"), _pixels(whole)
    np.testing.assert_array_equal(few[0], all_of_them[5])
    np.testing.assert_array_equal(few[1], all_of_them[2])
    assert not (tmp_path / "few" / "results.json").exists()


def test_images_that_are_missing_or_cut_are_made_again(run, whole):
    before, pixels = (whole / "results.json").read_bytes(), _pixels(whole)
    (whole / "images" / "00000" / "000001.png").unlink()
    cut = whole / "images" / "00001" / "000004.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    shutil.rmtree(whole / "images" / "00002")
    _evaluate(run, whole)
    assert (whole / "results.json").read_bytes() == before
    for one, other in zip(_pixels(whole), pixels, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_killed_command_goes_on_and_ends_in_the_same_bytes(run, whole, tmp_path):
    out = tmp_path / "killed"
    words = [sys.executable, "-c", _PROGRAM, *map(str, _words(run, out))]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, cwd=os.getcwd())
    second, end = out / "images" / "00001" / "manifest.jsonl", time.monotonic() + 120
    while not second.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert second.exists(), said.decode()[-2000:]
    assert not (out / "images" / "00002").exists() and not (out / "results.json").exists()
    made = second.stat().st_mtime_ns
    _evaluate(run, out)
    assert second.stat().st_mtime_ns == made, "what was whole was made again"
    for name in ("results.json", "values.json", "plan.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


class Killed(BaseException):
    """What ends a command where a signal would."""


@pytest.fixture
def killed_once_at_each_file(monkeypatch):
    """Lets every command die at the first file that none has died at, which is whole and still has
    its temporary name; gives the list of these files.
    """
    ended, replacing, remove = [], files.replacing, files._remove

    @contextlib.contextmanager
    def dying(path):
        with replacing(path) as temporary:
            yield temporary
            if path not in ended:
                ended.append(path)
                monkeypatch.setattr(files, "_remove", lambda path: None)
                raise Killed

    monkeypatch.setattr(files, "replacing", dying)
    monkeypatch.setattr(page, "replacing", dying)
    yield ended
    monkeypatch.setattr(files, "_remove", remove)


def test_a_command_killed_at_any_file_goes_on_and_ends_in_the_same_bytes(
    run, whole, tmp_path, killed_once_at_each_file, monkeypatch
):
    out, remove = tmp_path / "killed", files._remove
    for _ in range(40):
        monkeypatch.setattr(files, "_remove", remove)
        try:
            _evaluate(run, out)
            break
        except Killed:
            assert list(out.rglob("partial-*"))
    names = {path.relative_to(out).parts[0] for path in killed_once_at_each_file}
    assert names == {path.name for path in whole.iterdir()} and len(killed_once_at_each_file) > 15
    for name in ("results.json", "values.json", "plan.json", "report.html"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_guidances_side_by_side_share_the_reference(run, whole, tmp_path):
    told = _evaluate(run, tmp_path / "sweep", "--guidance", "0,1.5,3")
    lines = told.splitlines()
    assert lines[-4].split() == ["guidance", "fid_clean_inception", "clip_score_clip_toy"]
    assert [line.split()[0] for line in lines[-3:]] == ["0", "1.5", "3"]
    swept = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    same = {one["name"]: one["value"] for one in _results(whole)["metrics"]}
    assert swept["1.5"] == same and swept["0"] != swept["3"]
    assert "<svg" in (tmp_path / "sweep" / "report.html").read_text()
    assert len(list((tmp_path / "sweep").glob("features/reference/*"))) == 1


def test_another_plan_is_refused(run, whole):
    for more, sentence in (
        (("--seed", 8), "sampling.seed: 7 -> 8"),
        (("--guidance", "2"), "sampling.options.guidance: 1.5 -> 2.0"),
        (("--count", "5"), "prompts.count: 8 -> 5"),
        (("--shard-size", "4"), "images.shard_size: 3 -> 4"),
        (("--batch-size", "3"), "sampling.batch_size: 2 -> 3"),
        (("--mesh", "data=1"), "sampling.mesh: None -> {'data': 1}"),
        (("--step", "2"), "run.step: 4 -> 2"),
        (("evaluation.options.noise=0.3",), "sampling.options.noise: 0.2 -> 0.3"),
        (("--guidance", "a"), "write 1.5,3,5"),
        (("--guidance", "1,1"), "has a number twice"),
        (("--guidance", "1,1.0000001"), "has a number twice"),
        (("--guidance", "1,nan"), "has a number that is not finite"),
    ):
        assert sentence in refused(*_words(run, whole, *more)), more
    said = refused("evaluate", run / "run" / "mean", "--prompts", run / "prompts.tsv")
    assert "makes no images from captions" in said


def test_what_can_not_be_measured_is_told_before_images_are_generated(run, tmp_path):
    (tmp_path / "cats.txt").write_text("a red circle\na cat\n")
    for more, sentence in (
        (("--metrics", "judge:shapes"), "does not understand the captions: caption='a cat'"),
        (("--metrics", "is", "--protocol", "coco30k"), "has 2 prompts and 30000 are asked for"),
        (("--metrics", "is", "--protocol", "coco30k", "--count", 2), "30,000 images, and there"),
    ):
        words = ("--prompts", tmp_path / "cats.txt", "--out", tmp_path / "out", *more)
        assert sentence in refused("evaluate", run / "run", *words), more
        assert not (tmp_path / "out" / "images").exists()


def test_a_reference_that_a_metric_can_not_use_is_told_before_images_are_generated(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(generate, "generate", lambda *_: pytest.fail("images are generated"))
    np.savez(tmp_path / "plain.npz", mu=np.zeros(6), sigma=np.eye(6))
    np.savez(tmp_path / "pool2.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "by_place.npz", np.zeros((30, 6), np.float32))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    common = ("evaluate", run / "run", "--prompts", run / "prompts.tsv", "--out", tmp_path / "out")
    clean = ("--reference-mode", "clean")
    for name, metrics, more, sentence in (
        ("nothing", "fid", clean, "can't be read as statistics"),
        ("broken", "fid", clean, "can't be read as statistics"),
        ("pool2", "fid", clean, "features 4 wide, and those of inception-clean are 6 wide"),
        ("by_place", "fid", clean, "arr_0 is float32(30, 6), and images are uint8 (N, H, W, 3)"),
        ("plain", "fid", (), "say it with --reference-mode"),
        ("plain", "fid", (*clean, "--mode", "tf"), "has statistics of clean, not of inception-tf"),
        ("plain", "clip,fid,fid_infinity,pr,is", clean, "metrics=pr needs the features"),
    ):
        npz = tmp_path / f"{name}.npz"
        said = refused(*common, "--reference", npz, "--metrics", metrics, *more)
        assert sentence in said, said
    for metric, count in (("fid_infinity", 8), ("pr", 3), ("fid", 1), ("kid", 1)):
        more = ("--reference", run / "real", "--metrics", metric, "--count", count)
        assert f"metrics={metric} takes " in refused(*common, *more)


def test_a_protocol_refuses_another_reference_than_its_own(run, tmp_path, monkeypatch):
    _small(monkeypatch, "coco30k", count=8, reference_count=12, size=10)
    real, few, named = run / "real", tmp_path / "few", ("--protocol", "coco30k")
    write_images(few, 5)
    for name, words in (("same", (real, *named)), ("as_it_is", (real,)), ("few", (few, *named))):
        inside("evaluate", "reference", *words, "--out", tmp_path / f"{name}.npz")
    common = ("evaluate", run / "run", "--prompts", run / "prompts.tsv", "--metrics", "fid", *named)
    for reference, sentence in (
        (few, "compares with 12 images (all images of MS-COCO val2014), and reference="),
        (tmp_path / "few.npz", "has 5; give that many, or leave --protocol out"),
        (tmp_path / "as_it_is.npz", "brings images to size=10, and reference="),
    ):
        said = refused(*common, "--reference", reference, "--out", tmp_path / "out")
        assert sentence in said and not (tmp_path / "out").exists(), said
    found = []
    for reference in (real, tmp_path / "same.npz"):
        out = tmp_path / f"out-{reference.name}"
        inside(*common, "--reference", reference, "--out", out)
        found.append({one["name"]: one["value"] for one in _results(out)["metrics"]})
    assert set(found[0]) == {"fid_clean_inception", "fid_tf_inception"}
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    used = [one["reference"]["path"] for one in _results(out)["metrics"]]
    assert [path.rpartition("/")[2] for path in used] == ["same.npz", "same-tf.npz"]
    (tmp_path / "same-tf.npz").unlink()
    said = refused(*common, "--reference", tmp_path / "same.npz", "--out", tmp_path / "out")
    assert "not of inception-tf; give statistics of that, or as same-tf.npz beside it" in said


def _small(monkeypatch, name, **fields):
    """A protocol with other numbers."""
    small = dataclasses.replace(protocol.protocol(name), **fields)
    monkeypatch.setitem(protocol.PROTOCOLS, name, small)


def test_statistics_are_of_the_modes_of_their_protocol(run, tmp_path):
    for name, modes in (("imagenet50k", ["tf"]), ("coco30k", ["clean", "tf"])):
        command = ("evaluate", "reference", run / "real", "--protocol", name, "--out")
        for _ in range(2):  # the second finds all of them
            told = inside(*command, tmp_path / f"{name}.npz").stdout.splitlines()
            assert [line.partition(":")[0] for line in told] == [f"inception-{m}" for m in modes]
    assert all("are already in" in line for line in told) and "coco30k-tf.npz" in told[1]
    # what others read is made of the mode that is theirs
    inside(*command, tmp_path / "both.npz", "--adm", "--clean-fid", "both")
    assert (tmp_path / "both_clean_custom_na.npz").exists()
    has_images = ["arr_0" in np.load(tmp_path / f"both{end}.npz") for end in ("", "-tf")]
    assert has_images == [False, True]
    said = refused(*command, tmp_path / "no.npz", "--mode", "clean", "--adm")
    assert "give --mode tf" in said and not list(tmp_path.glob("no*"))


def test_a_protocol_chooses_its_prompts_whatever_the_seed_of_the_images(run, tmp_path, monkeypatch):
    path, _ = coco_file(tmp_path, images=12)
    for name in ("coco30k", "coco10k-mosaic", "coco30k-dmgan"):
        _small(monkeypatch, name, count=4, size=10, modes=("clean",))
    common = ("evaluate", run / "run", "--metrics", "is", "--prompts")
    for name, first in (("coco30k", "9 6 3 27"), ("coco10k-mosaic", "0 3 6 9")):
        found = []
        for seed in (0, 1):
            out = tmp_path / f"{name}-{seed}"
            more = ("--protocol", name, "--seed", seed, "--out", out)
            assert "may be others" not in inside(*common, f"coco:{path}", *more).stderr
            found.append(_results(out))
            lines = (out / "images" / "00000" / "manifest.jsonl").read_text().splitlines()
            assert [json.loads(line)["prompt"] for line in lines] == first.split()
        assert found[0]["prompts"] == found[1]["prompts"] and "captions" not in found[0]
        assert found[0]["images"]["sha256"] != found[1]["images"]["sha256"]
    words = ("--protocol", "coco30k-dmgan", "--out", tmp_path / "out")
    said = refused(*common, f"coco:{path}", *words)
    assert "is of uid_caption.csv: " in said and "gives others (image ids ascending" in said
    rows = "".join(f"{n},a small red circle\n" for n in range(4))
    for name, is_own in (("uid_caption.csv", True), ("mine.csv", False)):
        (tmp_path / name).write_text("uid,caption\n" + rows)
        told = inside(*common, f"coco:{tmp_path / name}", *words[:-1], tmp_path / name[:4]).stderr
        assert ("may be others" in told) != is_own
        said = _results(tmp_path / name[:4]).get("captions")
        assert said is None if is_own else said.endswith(f"{name}' may be others")


def test_images_are_not_written_among_those_that_they_are_compared_with(run, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "generate", lambda *_: pytest.fail("images are generated"))
    real = write_images(tmp_path / "real", 4)
    (tmp_path / "link").symlink_to(real)
    for out in (real / "eval", tmp_path / "link" / "a" / "b", real):
        command = ("--prompts", run / "prompts.tsv", "--reference", real, "--metrics", "fid")
        said = refused("evaluate", run / "run", *command, "--out", out)
        assert "among whose images its own would count" in said
    assert len(list(real.iterdir())) == 8


def test_several_guidances_leave_the_folder_of_something_else_alone(run, monkeypatch):
    monkeypatch.setattr(generate, "generate", lambda *_: pytest.fail("images are generated"))
    before = sorted(path.name for path in (run / "run").iterdir())
    said = refused(*_words(run, run / "run", "--guidance", "1,2"))
    assert "and no plan.json; name a new folder" in said
    assert sorted(path.name for path in (run / "run").iterdir()) == before


def test_options_that_would_do_nothing_are_refused(run, tmp_path):
    real, out = ("--images", run / "real"), ("--out", tmp_path / "out")
    of_images = (*real, "--metrics", "is", *out)
    for words, sentence in (
        ((*of_images, "--seed", 3), "seed=3 is for a run that generates"),
        ((*of_images, "--step", 4), "step='4' is for a run that generates"),
        ((*of_images, "--batch-size", 3), "batch_size=3 is for a run that generates"),
        ((*of_images, "--mode", "tf", "--protocol", "coco30k"), "mode='tf' is given beside"),
        ((*real, "--metrics", "clip", *out, "--mode", "tf"), "which metrics does not ask for"),
        ((run / "run", "--reference", run / "real"), "give --prompts"),
        ((run / "run", "--mode", "tf"), "mode='tf' is for a run that generates images for prompts"),
        ((run / "run", "--shard-size", 3), "shard_size=3 is for a run that generates"),
        ((run / "run", *out), "is for a run that generates images for prompts; give --prompts"),
        (("reference", run / "real", "--network", "clip", "--mode", "tf", "--out",
          tmp_path / "x.npz"), "which network does not ask for"),
        (("reference", run / "real", "--dinov2", "dino", "--out", tmp_path / "x.npz"),
         "dinov2='dino' is not read for network='inception'; leave it out, or give --network din"),
        ((*of_images, "--reference-mode", "tf"), "reference_mode='tf' is nothing without --refe"),
        ((*of_images, "--reference-split", "test"), "is nothing without --reference"),
        ((*of_images, "--split", "test"), "which has no splits"),
        ((run / "run", "--split", "test"), "split='test' is for --images"),
        ((run / "run", "--grid", 4), "grid=4 is for --images"),
        (("reference", run / "real", "--split", "test", "--out", tmp_path / "x.npz"),
         "which has no splits"),
        (("tokenizer", run / "run", *real, "--split", "test", *out), "which has no splits"),
        (("--images", "/", "--metrics", "is"), "give --out DIR"),
    ):  # fmt: skip
        assert sentence in (said := refused("evaluate", *words)), said
    assert not list(tmp_path.iterdir())


def test_a_folder_that_one_stands_in_is_measured_beside_itself(run, monkeypatch):
    monkeypatch.chdir(run / "real")
    assert "real-eval/results.json" in inside("evaluate", "--images", ".", "--metrics", "is").stdout


def test_a_file_in_place_of_a_folder_or_the_other_way_round_is_one_sentence(
    run, whole, tmp_path, monkeypatch
):
    """Of everything that an evaluation writes, before images are generated."""
    monkeypatch.setattr(generate, "generate", lambda *_: pytest.fail("images are generated"))
    written = [path.relative_to(whole) for path in whole.rglob("*") if path.name != "lock"]
    # of a shard of images nothing is kept that is not whole
    written = [path for path in written if path.parts[0] != "images" or len(path.parts) < 3]
    assert len(written) > 15
    for name in written:
        out = tmp_path / "out"
        shutil.copytree(whole, out)
        kind = "file" if (out / name).is_file() else "folder"
        if kind == "file":
            (out / name).unlink()
            (out / name).mkdir()
        else:
            shutil.rmtree(out / name)
            (out / name).write_text("")
        assert f"has '{name}', which is not a {kind}" in refused(*_words(run, out))
        shutil.rmtree(out)


@pytest.mark.parametrize(
    ("kind", "file", "names"),
    [
        ("geneval", "metadata.jsonl", ["", "00000", "00000/samples", "00000/samples/0002.png"]),
        ("t2i-compbench", "color_val.txt", ["", "color", "color/samples/a cup_000003.png"]),
        ("dpg", "set/a.txt", ["", "a.png"]),
    ],
)
def test_a_folder_of_a_benchmark_that_can_not_be_written_is_told_first(
    run, tmp_path, monkeypatch, kind, file, names
):
    monkeypatch.setattr(generate, "generate", lambda *_: pytest.fail("images are generated"))
    file = tmp_path / file
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(_CUP) if kind == "geneval" else "a cup")
    given = file.parent if kind == "dpg" else file
    command = ("evaluate", run / "run", "--prompts", f"{kind}:{given}", "--out", tmp_path / "out")
    for name in names:
        place = tmp_path / "out" / kind / name
        place.parent.mkdir(parents=True)
        place.mkdir() if name.endswith("png") else place.write_text("")
        said = refused(*command)
        assert "is not a f" in said and kind in said, said
        shutil.rmtree(tmp_path / "out")
    if kind == "t2i-compbench":
        file.write_text("a cup_cup")
        assert "holds '_', where the scorer" in refused(*command)


@pytest.mark.parametrize("name", ["guidance-2", "sweep.json", "report.html"])
def test_several_guidances_are_refused_where_their_table_can_not_be(
    run, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(generate, "generate", lambda *_: pytest.fail("images are generated"))
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / name
    place.mkdir() if "." in name else place.write_text("")
    said = refused(*_words(run, tmp_path / "out", "--guidance", "1,2"))
    assert f"has '{name}', which is not a f" in said


def test_a_report_that_could_not_be_written_is_no_success(run, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("t2i_jax.runs.report.replacing", refused)
    done = inside("report", run / "run", status=2)
    assert "report.html can't be written" in done.stderr and "written" not in done.stdout


def test_without_prompts_it_is_what_eval_measures(run):
    found = [inside(name, run / "run").stdout for name in ("evaluate", "eval")]
    assert found[0] == found[1] and "validation/loss" in found[0]


def test_benchmarks_get_their_own_folders(run, tmp_path):
    (tmp_path / "geneval.jsonl").write_text(json.dumps(_CUP))
    out = tmp_path / "out"
    inside(
        "evaluate", run / "run", "--prompts", f"geneval:{tmp_path / 'geneval.jsonl'}", "--out", out
    )
    assert sorted(path.name for path in (out / "geneval" / "00000" / "samples").iterdir()) == [
        "0000.png", "0001.png", "0002.png", "0003.png",
    ]  # fmt: skip


def test_a_reference_that_is_drawn_is_as_large_as_the_images_of_a_run(run, tmp_path):
    inside(
        "evaluate", run / "run", "--prompts", run / "prompts.tsv", "--reference", "digits",
        "--metrics", "fid", "--out", tmp_path / "out",
    )  # fmt: skip
    [one] = _results(tmp_path / "out")["metrics"]
    assert one["reference"]["sizes"] == {"8x8": one["n_reference"]}


def test_intervals_of_a_judge_count_images_of_one_prompt_as_such(run, tmp_path):
    rows = [{**_CUP, "prompt": prompt} for prompt in _PROMPTS]
    (tmp_path / "geneval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ("evaluate", run / "run", "--metrics", "judge:shapes,clip", "--out")
    inside(*common, tmp_path / "four", "--prompts", f"geneval:{tmp_path / 'geneval.jsonl'}")
    inside(*common, tmp_path / "one", "--prompts", run / "prompts.tsv")
    for name, has_several in (("four", True), ("one", False)):
        results = _results(tmp_path / name)
        told = [one["interval"]["method"] for one in results["metrics"]]
        assert [("prompts" in one) == has_several for one in told] == [True] * len(told), told
    parts = _results(tmp_path / "four")["categories"]["judge_shapes"]
    assert all("by prompts" in one["interval"]["method"] for one in parts.values())


def test_the_numbers_of_a_folder_of_samples_are_told_once(run, tmp_path):
    sample_folder.write_captions(tmp_path, _PROMPTS[:2])
    words = ("--prompts", tmp_path / "captions.txt", "--guidance", "1,2", "--out", tmp_path / "out")
    told = inside("evaluate", run / "run", *words, "--batch-size", 2).stderr
    assert told.count("captions.txt' have the numbers of t2i sample in front") == 1, told


def test_all_prompts_are_read_before_images_are_made_for_the_first(run, tmp_path, monkeypatch):
    told = inside(*_words(run, tmp_path / "out", "--guidance", "1,2")).stderr
    assert told.count(" cut") == 1 and "so are 4 others" in told, told
    monkeypatch.setattr(generate, "generate", lambda *_: pytest.fail("images are generated"))
    read = prompting.texts

    def picky(encoder, tokenizer, prompts, *more, **named):
        if "a large yellow circle" in prompts:
            raise UserError("prompt 7 is none that it knows; leave it out.")
        return read(encoder, tokenizer, prompts, *more, **named)

    monkeypatch.setattr(prompting, "texts", picky)
    assert "prompt 7 is none" in refused(*_words(run, tmp_path / "other"))
