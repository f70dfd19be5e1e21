"""The whole way at toy size through the command line: train, carry on, sample, export, evaluate,
refuse.
"""

import json
import re

import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import runs
from tests.e2e import tiny
from tests.e2e.command import inside, refused
from tests.systems import toy_dalle2

_RECIPE = tiny.__file__
_CAPTION = "a red circle above a blue square"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and in this process the program that measured it on four images, which makes those of
    what follows too.
    """
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    done = inside("train", _RECIPE, "--workdir", workdir)
    assert f"done: {workdir}" in done.stdout and "alignment_heldout" in done.stdout
    return workdir


def _pictures(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*-*.png"))}


def test_the_run_leaves_its_folder(trained):
    for name in (
        "checkpoints",
        "tokenizer",
        "text_tokenizer",
        "samples/heldout.png",
        "metrics.json",
    ):
        assert (trained / name).exists(), name
    assert "alignment_heldout" in json.loads((trained / "metrics.json").read_text())
    steps = [
        json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 4


def test_trained_again_it_is_done_and_with_more_steps_it_carries_on(trained):
    before = (trained / "metrics.jsonl").read_text()
    inside("train", _RECIPE, "--workdir", trained)
    assert (trained / "metrics.jsonl").read_text() == before
    assert (
        "resuming from step 4 of 6"
        in inside("train", _RECIPE, "train.steps=6", "--workdir", trained).stderr
    )
    assert "train.optim.learning_rate" in refused(
        "train", _RECIPE, "train.steps=8", "train.optim.learning_rate=0.1", "--workdir", trained
    )


def test_a_super_resolution_run_doubles_the_pictures(trained, tmp_path):
    larger = tmp_path / "larger"
    inside(
        "train",
        "configs/parti/super_resolution.py",
        "--workdir",
        larger,
        "train.steps=2",
        "train.batch_size=2",
        "task.model.channels=4",
        "task.model.blocks=1",
        "task.image_size=16",
        "data.image_size=16",
    )
    sample = ("sample", trained, _CAPTION, "--count", 4, "--out")
    inside(*sample, tmp_path / "small")
    inside(*sample, tmp_path / "large", "--upscale", larger)
    small, large = (_pictures(tmp_path / name)["000-00.png"] for name in ("small", "large"))
    assert large.shape[0] == 2 * small.shape[0]
    said = refused("sample", trained, _CAPTION, "--upscale", trained / "tokenizer")
    assert "is a run of TokenizerTask; give the run of a super-resolution network" in said


def test_sampling_and_the_exported_system(trained, tmp_path):
    def sample(system, out, *more):
        return inside("sample", system, _CAPTION, "--count", 4, "--out", tmp_path / out, *more)

    sample(trained, "plain")
    sample(trained, "negative", "--negative", "a green square", "--guidance", 8)
    inside("export", trained, tmp_path / "system")
    assert "is not empty" in refused("export", trained, tmp_path / "system")
    sample(tmp_path / "system", "exported")
    sample(trained, "meshed", "--mesh", "data=1")
    made = {
        name: _pictures(tmp_path / name) for name in ("plain", "negative", "exported", "meshed")
    }
    plain, negative = made["plain"], made["negative"]
    assert (
        sorted(plain) == sorted(made["exported"]) == [f"000-0{i}.png" for i in range(4)]
        and len(negative) == 4
    )
    assert all(np.array_equal(plain[name], made["exported"][name]) for name in plain)
    assert all(np.array_equal(plain[name], made["meshed"][name]) for name in plain)
    assert "does not fit 1 device(s)" in refused("sample", trained, _CAPTION, "--mesh", "data=3")
    with pytest.raises(t2i.UserError, match="which works on one device"):
        t2i.load(trained / "tokenizer", mesh={"data": 1})
    assert (tmp_path / "plain" / "captions.txt").read_text() == f"000 {_CAPTION}\n"

    Image.fromarray(np.full((40, 40, 3), (200, 30, 30), np.uint8)).save(tmp_path / "red.png")
    sample(trained, "completed", "--init", tmp_path / "red.png", "--keep-rows", 0.5)
    assert len(_pictures(tmp_path / "completed")) == 4
    bad = ("sample", trained, _CAPTION, "--init", tmp_path / "red.png", "--keep-rows", 1.5)
    assert "keep_rows=1.5 must lie between 0 and 1" in refused(*bad)
    assert "init=" in (said := refused("sample", trained, _CAPTION, "--init", _RECIPE))
    assert "can't be used: not an image" in said


def test_a_clip_ranks_the_images_of_another_system(trained, tmp_path):
    ranker = runs.train(toy_dalle2.clip(), tmp_path / "clip")
    captions = (_CAPTION, "a green cross")

    def sample(out, *more):
        inside("sample", trained, *captions, "--out", tmp_path / out, "--batch-size", 4, *more)
        return _pictures(tmp_path / out)

    every = sample("every", "--count", 3)
    best = sample("best", "--count", 2, "--best-of", 3, "--rerank", tmp_path / "clip")
    assert list(best) == [f"{i:03d}-{j:02d}.png" for i in range(2) for j in range(2)]
    told = (tmp_path / "best" / "scores.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[0] for line in told] == list(best)
    for i, caption in enumerate(captions):
        own = [every[f"{i:03d}-{j:02d}.png"] for j in range(3)]
        similar = ranker.similarity(own, [caption])[:, 0]
        order = np.argsort(-similar, kind="stable")[:2]
        for j, row in enumerate(order):
            np.testing.assert_array_equal(best[f"{i:03d}-{j:02d}.png"], own[row])
            assert float(told[2 * i + j].split("\t")[1]) == pytest.approx(similar[row], abs=1e-4)


def test_prompts_of_files_and_images_of_any_kind(trained, tmp_path):
    def sample(out, *more):
        done = inside("sample", trained, *more, "--count", 1, "--out", tmp_path / out)
        return done, _pictures(tmp_path / out)

    text = "a red circle\r\n\nein gr\u00fcner Kreis\u2028hier\n"
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    options = ("--batch-size", 2, "--top-k", 0.1)
    done, made = sample("a", "a blue square", "--prompts", tmp_path / "p.txt", *options)
    assert list(made) == ["000-00.png", "001-00.png", "002-00.png"]
    assert "has 1 line without a prompt, left out" in done.stderr
    assert (tmp_path / "a" / "captions.txt").read_text(encoding="utf-8") == (
        "000 a blue square\n001 a red circle\n002 ein gr\u00fcner Kreis hier\n"
    )
    (tmp_path / "p.csv").write_text("file,text\nx.png,a blue square\ny.png,a red circle\n")
    _, again = sample("b", "--prompts", tmp_path / "p.csv", "--top-k", 0.1)
    assert all(np.array_equal(again[name], made[name]) for name in again) and len(again) == 2

    done, _ = sample("long", "circle " * 40)
    told = re.search(r"t2i: prompt 0 has (\d+) tokens, the last (\d+) are cut\.", done.stderr)
    assert int(told[1]) - int(told[2]) == 12  # max_length
    assert done.stdout == f"1 image in {tmp_path / 'long'}\n"

    wide = np.zeros((16, 48, 4), np.uint8)  # all of it transparent
    Image.fromarray(wide).save(tmp_path / "wide.png")
    wide[:, :24], wide[:, 24:, :3] = 255, 255  # white, the right half of it transparent
    Image.fromarray(wide).save(tmp_path / "mask.png")
    done, _ = sample("c", "x", "--init", tmp_path / "wide.png", "--mask", tmp_path / "mask.png")
    assert "init_images is 48x16 pixels; the 16x16 in its middle are used" in done.stderr
    assert "Parti keeps whole tokens, 4x4 pixels each: 8 of 16" in done.stderr


def test_what_sample_cannot_use_is_one_sentence(trained, tmp_path):
    def said(*more):
        done = inside("sample", trained, *more, status=2)
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("t2i: "), done.stderr
        return done.stderr

    (tmp_path / "latin.txt").write_bytes("a\ncaf\u00e9\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "other.csv").write_text("name,size\na,1\n")
    assert "is not UTF-8 in line 2" in said("--prompts", tmp_path / "latin.txt")
    assert "holds no prompts" in said("--prompts", tmp_path / "empty.txt")
    assert "has no column caption or text or prompt" in said("--prompts", tmp_path / "other.csv")
    assert "can't be read" in said("--prompts", tmp_path / "none.txt")
    assert "can't be read" in said("--prompts", tmp_path)
    assert "is not text in UTF-8" in said("caf\udce9")
    assert "prompts=[] is empty" in said()
    assert "count=100000000 makes 100000000 images" in said("x", "--count", 10**8)
    assert "seed=-1 is below 0" in said("x", "--seed", -1)
    assert f"seed={2**63} is above" in said("x", "--seed", 2**63)
    assert "batch_size=0" in said("x", "--batch-size", 0)
    assert "is for runs with stored text embeddings" in said("x", "--t5", tmp_path)
    assert "is nothing without --init" in said("x", "--mask", tmp_path / "mask.png")
    of_tokenizer = "is a run of TokenizerTask; give the run of a"
    assert f"{of_tokenizer} super-resolution" in said("x", "--upscale", trained / "tokenizer")
    best = ("--best-of", 4, "--rerank", trained / "tokenizer")
    assert f"{of_tokenizer} CLIP" in said("x", *best)
    nowhere = tmp_path / "nowhere"
    assert f"rerank='{nowhere}' is not a folder" in said("x", *best[:3], nowhere)
    helped = inside("sample", trained, "--help").stdout
    assert "t2i sample RUN [CAPTION ...]" in helped and "--top-k" in helped


def test_evaluation(trained):
    printed = inside("eval", trained, "evaluation.pictures=4").stdout
    assert re.search(r"^alignment_heldout: [\d.]+$", printed, re.MULTILINE)
    assert "codebook_usage" in inside("eval", trained / "tokenizer", "evaluation.pictures=4").stdout


def test_mistakes_get_one_sentence(trained, tmp_path):
    fresh = ("--workdir", tmp_path / "fresh")
    (tmp_path / "empty").mkdir()
    assert "is not a file" in refused("train", tmp_path / "nothing.py", *fresh)
    assert "did you mean 'train.steps'?" in refused("train", _RECIPE, "train.step=3", *fresh)
    assert "data.source='shape' is not known; did you mean 'shapes'?" in refused(
        "train", _RECIPE, "data.source=shape", *fresh
    )
    assert "holds no checkpoint" in refused("sample", tmp_path / "empty", _CAPTION)
    assert "is not a folder" in refused("sample", tmp_path / "nowhere", _CAPTION)
    assert "makes no images from text" in refused("sample", trained / "tokenizer", _CAPTION)


def test_the_same_from_python(trained):
    system = t2i.load(trained)
    assert isinstance(system.task, t2i.PartiTask)
    images = system.generate([_CAPTION, "a green square"], seed=1, top_k=4, temperature=0.5)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
    again = system.generate([_CAPTION], seed=1, top_k=4, temperature=0.5)
    np.testing.assert_array_equal(again[0], images[0])
    tokenizer = t2i.load(trained / "tokenizer")
    ids = tokenizer.encode(images)
    assert ids.shape == (2, 16) and int(ids.max()) < 16
    assert tokenizer.decode(ids).shape == images.shape
    np.testing.assert_array_equal(
        system.generate(_CAPTION, seed=1, top_k=4, temperature=0.5), images[:1]
    )


def test_the_recipe_is_what_the_run_holds(trained):
    from t2i_jax.runs import load_run_recipe

    stored = load_run_recipe(trained)
    assert stored.data == tiny.get_config().data
    assert stored.task.model == tiny.get_config().task.model
