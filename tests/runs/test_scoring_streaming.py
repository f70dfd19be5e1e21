"""`t2i evaluate RUN --streaming`: images are measured shard by shard and removed."""

import json

import pytest

from t2i_jax.runs.scoring import features, generate, streaming
from tests.e2e.command import inside, refused
from tests.runs import scoring_toys
from tests.runs.scoring_toys import write_images
from tests.toy_system import recipe as toy

_toys = scoring_toys.in_place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained toy, its prompts and real images."""
    home = tmp_path_factory.mktemp("toy")
    inside("train", toy.__file__, "--workdir", home / "run", "train.steps=1", "mean.train.steps=1")
    (home / "prompts.txt").write_text("".join(f"a {word} circle\n" for word in "abcdefgh"))
    write_images(home / "real", 12)
    return home


def _words(run, out, *more):
    common = ("--prompts", run / "prompts.txt", "--reference", run / "real", "--out", out)
    sizes = ("--shard-size", 3, "--batch-size", 2)
    return ("evaluate", run / "run", *common, *sizes, "--metrics", "fid,clip", *more)


def _files(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def _json(path):
    return json.loads(path.read_text())


def test_the_numbers_are_those_of_images_that_are_kept(run, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "KEPT", 2)
    inside(*_words(run, tmp_path / "kept"))
    inside(*_words(run, tmp_path / "streamed", "--streaming"))
    for name in ("results.json", "values.json"):
        assert _json(tmp_path / "kept" / name) == _json(tmp_path / "streamed" / name)
    removed = _files(tmp_path / "kept") - _files(tmp_path / "streamed")
    assert removed == {f"images/{i // 3:05d}/{i:06d}.png" for i in range(2, 8)}
    # images that are kept stay, and those that were removed are made again to be kept
    before = _files(tmp_path / "kept")
    inside(*_words(run, tmp_path / "kept", "--streaming"))
    inside(*_words(run, tmp_path / "streamed"))
    assert _files(tmp_path / "kept") == before == _files(tmp_path / "streamed")


def test_what_was_measured_before_it_was_killed_is_not_made_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "KEPT", 0)
    out, compute, made = tmp_path / "out", features.compute_shard, []

    def killed(images, extractor, layers, folder, bring, shard, batch_size):
        compute(images, extractor, layers, folder, bring, shard, batch_size)
        if shard == 1 and extractor.name.startswith("clip"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features, "compute_shard", killed)
        inside(*_words(run, out, "--streaming"), status=130)
    assert len(list(out.glob("images/*/*.png"))) == 3  # of the shard that was not removed yet
    real = generate.generate_shard

    def counted(*given, **named):
        made.append(given[5])
        real(*given, **named)

    monkeypatch.setattr(generate, "generate_shard", counted)
    inside(*_words(run, out, "--streaming"))
    assert made == [2] and _json(out / "results.json")["images"]["count"] == 8


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--metrics", "fid,judge:shapes"), "metrics=judge:shapes looks at all images"),
        (("--metrics", "fid", "--images", "x"), "RUN or --images DIR"),
    ],
)
def test_what_needs_the_images_is_refused(run, tmp_path, more, told):
    assert told in refused(*_words(run, tmp_path / "out", "--streaming", *more))


def test_images_that_are_there_are_not_streamed(run, tmp_path):
    words = ("evaluate", "--images", run / "real", "--metrics", "is", "--streaming")
    assert "streaming=True is for a run that generates images" in refused(*words)
