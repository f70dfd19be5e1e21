"""The held-out part: by caption, the same in every source, never trained on, exact on resuming."""

import dataclasses
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i_jax.data import heldout
from t2i_jax.data.heldout import division
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.data.source import open_source
from t2i_jax.errors import UserError

_COUNT, _SHARE = 60, 0.2


def _caption(i):
    return f"drawing {i // 2} of a thing"  # two images each


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same images and captions as text files, as a table, in a tar, packed, and as a Hugging
    Face dataset; each image's grey level is its number.
    """
    import tarfile

    import datasets

    from t2i_jax.data.pack import pack

    home = tmp_path_factory.mktemp("sources")
    for name in ("texts", "table"):
        (home / name).mkdir()
    for i in range(_COUNT):
        Image.new("RGB", (4, 4), (i, i, i)).save(home / "texts" / f"{i:03d}.png")
        Image.new("RGB", (4, 4), (i, i, i)).save(home / "table" / f"x{_COUNT - i:03d}.png")
        (home / "texts" / f"{i:03d}.txt").write_text(_caption(i) + "\n")
    rows = (
        json.dumps({"file": f"x{_COUNT - i:03d}.png", "caption": _caption(i)})
        for i in range(_COUNT)
    )
    (home / "table" / "captions.jsonl").write_text("\n".join(rows))
    with tarfile.open(home / "all.tar", "w") as archive:
        for path in sorted((home / "texts").iterdir()):
            archive.add(path, path.name)
    pack(open_source(f"folder:{home / 'texts'}", image_size=4), home / "packed", name="texts")
    table = {
        "image": [str(home / "texts" / f"{i:03d}.png") for i in range(_COUNT)],
        "caption": [_caption(i) for i in range(_COUNT)],
    }
    of = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(table, features=of).save_to_disk(home / "hf")
    return {
        "folder": f"folder:{home / 'texts'}",
        "table": f"folder:{home / 'table'}",
        "webdataset": f"webdataset:{home}/*.tar",
        "packed": f"arrayrecord:{home / 'packed'}",
        "hf": f"hf:{home / 'hf'}",
    }


def _config(source, **fields):
    return DataConfig(**{"source": source, "image_size": 4, "heldout": _SHARE, **fields})


def _numbers(source, part, wants=("image",)):
    """The images of a part by their grey level."""
    stream = batches(_config(source), 7, 0, wants=wants, repeat=False, part=part)
    return sorted(int(n) for batch in stream for n in batch["image"][:, 0, 0, 0])


def test_every_source_holds_out_the_same_captions(sources):
    parts = {name: _numbers(source, "heldout") for name, source in sources.items()}
    first = parts["folder"]
    assert 2 <= len(first) <= _COUNT // 2 and all(part == first for part in parts.values())
    assert all(n ^ 1 in first for n in first), "both images of a caption are on the same side"
    for name, source in sources.items():
        assert _numbers(source, "train") == sorted(set(range(_COUNT)) - set(first)), name
        assert _numbers(source, "train", ("image", "caption")) == _numbers(source, "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_training_never_sees_it_and_resumes_exactly(sources, workers):
    config = _config(sources["folder"], workers=workers, crop="random", flip=True)
    held = set(_numbers(sources["folder"], "heldout"))
    rows = [(0, 1, 2), (3, 4)]

    def streams():
        return [batches(config, 5, 3, wants=("image",), rows=rows, process=p) for p in (0, 1)]

    def levels(batch):
        return [int(n) for n in batch["image"][:, 0, 0, 0]]

    whole, seen, states = streams(), [], None
    for step in range(30):
        seen.append([levels(next(stream)) for stream in whole])
        if step == 10:
            states = [json.loads(json.dumps(stream.get_state())) for stream in whole]
    flat = [n for step in seen for part in step for n in part]
    assert not held & set(flat) and set(flat) == set(range(_COUNT)) - held
    again = streams()
    for stream in again:
        stream.set_state(states)
    assert [[levels(next(stream)) for stream in again] for _ in range(19)] == seen[11:]
    # another number of processes goes on, and another number of workers
    alone = batches(dataclasses.replace(config, workers=0), 4, 3, wants=("image",))
    alone.set_state(states)
    rest = [n for _ in range(30) for n in levels(next(alone))]
    assert not held & set(rest)
    epoch = len(set(range(_COUNT)) - held)
    first = [n for step in seen[:11] for part in step for n in part]
    counts = {n: (first + rest)[: 2 * epoch].count(n) for n in set(first + rest)}
    assert max(counts.values()) - min(counts.values()) <= 2


def test_nothing_is_held_out_without_a_share_and_the_order_stays(sources):
    plain = batches(_config(sources["folder"], heldout=0.0), 6, 0, wants=("image",))
    seen = {int(n) for _ in range(10) for n in next(plain)["image"][:, 0, 0, 0]}
    assert seen == set(range(_COUNT))
    with pytest.raises(UserError, match="data.heldout=0.0 .* holds nothing out; give a share"):
        batches(_config(sources["folder"], heldout=0.0), 6, 0, wants=("image",), part="heldout")
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="data.heldout=.* is no share"):
            DataConfig(heldout=wrong)


def test_the_held_out_stream_repeats_what_it_may_look_for(sources):
    stream = batches(_config(sources["table"]), 4, 0, wants=("caption",), part="heldout", most=3)
    captions = list(itertools.chain.from_iterable(next(stream)["caption"] for _ in range(3)))
    assert captions[:3] == captions[3:6] == captions[6:9]
    assert (
        len(
            batches(_config(sources["hf"]), 9, 0, wants=("caption",), part="heldout").__next__()[
                "caption"
            ]
        )
        == 9
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([None, "a", "b", "c", "dog", "cat", "x y"]) | st.text(), min_size=1),
    st.floats(0.001, 0.999),
)
def test_a_small_set_has_something_on_either_side(captions, share):
    captions = [None if caption == "" else caption for caption in captions]
    made = division(range(len(captions)), captions, len(captions), share)
    held = [made.is_held_out(i, caption) for i, caption in enumerate(captions)]
    assert made.count == made.found == sum(held) and str(sum(held)) in made.line()
    if len(captions) == 1:
        assert not any(held)
    elif made.by_record or None in captions or len(set(captions)) > 1:
        assert any(held) and not all(held)
    if not made.by_record:
        sides = {c: {held[i] for i, d in enumerate(captions) if d == c} for c in set(captions)}
        assert all(len(side) == 1 for c, side in sides.items() if c is not None)


def test_names_of_classes_are_divided_image_by_image():
    captions = [f"a photo of a {name}" for name in ("cat", "dog", "owl") for _ in range(100)]
    made = division(range(300), captions, 300, 0.05)
    held = {captions[i] for i in range(300) if made.is_held_out(i, captions[i])}
    assert made.by_record and 3 <= made.count <= 40 and "image by image" in made.line()
    assert len(held) >= 2, "no class is missing from training"
    one = division(range(8), ["a photo"] * 8, 8, 0.05)
    assert one.by_record and 1 <= one.count < 8


def test_inspect_shows_the_size_of_the_part(sources, tmp_path):
    from tests.e2e.command import inside

    out = inside("data", "inspect", sources["folder"], "--sheet", tmp_path / "a.png",
                 "--heldout", _SHARE).stdout  # fmt: skip
    count = len(_numbers(sources["folder"], "heldout"))
    assert f"data.heldout=0.2 holds out {count} of {_COUNT} records, by caption" in out


def test_the_size_of_the_part_tells_of_images_with_several_captions(sources, tmp_path):
    assert "several" not in heldout.divide(open_source(sources["table"], image_size=4), 0.5).line()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("file,caption\na.png,one\na.png,two\n")
    told = heldout.divide(open_source(f"folder:{tmp_path}", image_size=4), 0.5).line()
    assert "an image with several captions may be trained on with another of them" in told


def test_one_image_is_trained_on_whatever_its_caption(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    config = _config(f"folder:{tmp_path}", heldout=0.5)
    for caption in "abcdefgh":  # about half of them have a hash below the limit
        (tmp_path / "a.txt").write_text(caption)
        assert next(batches(config, 2, 0, wants=("image",)))["image"].shape == (2, 4, 4, 3)
    with pytest.raises(UserError, match="holds out none of the 1 records"):
        batches(config, 2, 0, wants=("image",), part="heldout")


def test_nothing_left_to_train_on_is_refused_and_not_looked_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "_LOOKED_AT", 3)  # a large set, of which a few are looked at
    for i in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    config = _config(f"folder:{tmp_path}", heldout=1 - 1e-9)
    with pytest.raises(UserError, match="data.heldout=.* holds out all of the 6 records of .*; g"):
        next(batches(config, 2, 0, wants=("image",)))


_CLASSES = ["a cat", "a dog"] * 30
_THINGS = [f"drawing {i} of a thing" for i in range(60)]


@pytest.mark.parametrize(
    ("before", "now", "is_same", "share", "within"),
    [
        (_THINGS, _THINGS, False, 0.2, True),  # by caption: in every source
        (_THINGS, _THINGS[1:], True, 0.2, True),
        (_THINGS, [*_THINGS, ""], False, 0.2, True),
        (_THINGS, _THINGS, True, 0.3, False),
        (_CLASSES, _CLASSES, True, 0.2, True),
        (_CLASSES, _CLASSES, True, 0.1, True),
        (_CLASSES, _CLASSES, False, 0.2, False),  # by number: there alone
        (_CLASSES, _CLASSES[1:], True, 0.2, False),
        ([*_CLASSES, None], _CLASSES, False, 0.2, False),
        (_CLASSES, _CLASSES[:20], False, 0.2, False),  # by caption now
        ([None] * 60, [None] * 59, True, 0.2, False),
        ([None] * 60, [None] * 60, False, 0.2, False),
        ([*_THINGS, None], [*_THINGS, None], True, 0.2, True),
        ([*_THINGS, None], _THINGS, False, 0.2, True),
        ([*_THINGS, None], [None, *_THINGS], False, 0.2, False),
        (_THINGS, _THINGS[4:6], False, 0.001, False),  # something is held out, whatever it is
        (None, _THINGS, False, 0.2, True),  # of a run that kept none
        (None, _CLASSES, False, 0.2, False),
        (None, _CLASSES, True, 0.2, True),
    ],
)
def test_what_goes_by_number_is_held_out_where_it_was_trained_alone(
    before, now, is_same, share, within
):
    def made(captions, share):
        return division(range(len(captions)), captions, len(captions), share)

    earlier = None if before is None else made(before, 0.2)
    assert made(now, share).is_within(earlier, is_same) == within
