"""Batches: order, shards, resuming, cutting, and samples that cannot be used."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal

import chex
import numpy as np
import pytest

from t2i_jax.data import pipeline
from t2i_jax.data.crop import crop
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.data.source import BadSample, Source
from t2i_jax.errors import ReaderKilled, UserError
from t2i_jax.eval.judge_shapes import parse

CONFIG = DataConfig(source="folder:numbered", image_size=4)
HALVES = [(0, 1), (2, 3)]  # rows of a batch of 4 that each of two processes reads
QUARTERS = [(0,), (1,), (2,), (3,)]


class Numbered(Source):
    """Record i: an image whose pixels are i, captioned with i; the bad ones raise."""

    def __init__(self, length, bad=(), height=4, width=6):
        self.length, self.bad, self.shape = length, bad, (height, width, 3)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise BadSample("not an image", f"{index}.png")
        ramp = np.arange(self.shape[1], dtype=np.uint8)[None, :, None]
        embeds = np.full((1 + index % 3, 2), index, np.float16)
        return {
            "image": np.full(self.shape, index, np.uint8) + ramp,
            "caption": str(index),
            "tokens": np.array([index, 7]),
            "text_embeds": embeds,
            "text_mask": None,
        }


class Blind(Source):
    """Captions without images."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return {"image": None, "caption": "words"}


@pytest.fixture
def numbered(monkeypatch):
    """Makes `batches` read a `Numbered` source."""

    def use(*arguments, **named):
        source = Numbered(*arguments, **named)
        monkeypatch.setattr(pipeline, "open_source", lambda *_, **__: source)

    return use


def tokenize(captions):
    ids = np.array([[int(caption), 1] for caption in captions], np.int32)
    return ids, np.ones(ids.shape, bool)


def numbers(stream, count):
    return [
        int(caption) for batch in itertools.islice(stream, count) for caption in batch["caption"]
    ]


def equal(a, b):
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_an_epoch_is_a_new_order_of_everything(numbered):
    numbered(12)
    order = numbers(batches(CONFIG, 4, 0, wants=("caption",)), 9)
    epochs = [order[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(12)]}) == 4
    assert order == numbers(batches(CONFIG, 4, 0, wants=("caption",)), 9)
    assert order != numbers(batches(CONFIG, 4, 1, wants=("caption",)), 9)
    assert order == numbers(batches(CONFIG, 6, 0, wants=("caption",)), 6)


def test_batches_are_full_across_epochs(numbered):
    numbered(5)
    stream = batches(CONFIG, 8, 0, wants=("image", "tokens"))
    for batch in itertools.islice(stream, 3):
        chex.assert_shape([batch["image"], batch["tokens"]], [(8, 4, 4, 3), (8, 2)])
        chex.assert_type([batch["image"], batch["tokens"]], [np.uint8, np.int32])


def test_one_pass_in_order_leaves_nothing_out(numbered):
    numbered(10)
    found = [batch["caption"] for batch in batches(CONFIG, 4, 0, wants=("caption",), repeat=False)]
    assert found == [list("0123"), list("4567"), list("89")]
    rows = [(0, 1), (2,), (3,)]

    def of(process):
        return batches(CONFIG, 4, 0, wants=("caption",), repeat=False, rows=rows, process=process)

    parts = [numbers(of(process), 9) for process in range(3)]
    assert parts == [[0, 1, 4, 5, 8, 9], [2, 6], [3, 7]]


@pytest.mark.parametrize("rows", [HALVES, [(0, 2), (1, 3)], QUARTERS])
def test_processes_put_together_the_batches_of_one(numbered, rows):
    numbered(13, height=5, width=9)
    config = dataclasses.replace(CONFIG, crop="random", flip=True)
    whole = batches(config, 4, 0, wants=("image", "caption"))
    parts = [
        batches(config, 4, 0, wants=("image", "caption"), rows=rows, process=p)
        for p in range(len(rows))
    ]
    for _ in range(9):
        batch = next(whole)
        for of, part in zip(rows, map(next, parts), strict=True):
            np.testing.assert_array_equal(part["image"], batch["image"][list(of)])
            assert part["caption"] == [batch["caption"][row] for row in of]


@pytest.mark.parametrize("threads", [0, 2])
def test_resuming_is_exact(numbered, threads):
    numbered(30, bad=(4,), height=5, width=9)
    config = dataclasses.replace(CONFIG, crop="random", flip=True, threads=threads)
    wants = ("image", "caption", "text", "text_mask")
    stream = batches(config, 4, 3, tokenize=tokenize, wants=wants)
    for _ in range(5):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    rest = [next(stream) for _ in range(10)]
    for fresh in (True, False):
        again = batches(config, 4, 3, tokenize=tokenize, wants=wants) if fresh else stream
        again.set_state([state])
        assert again.get_state() == state
        for batch in rest:
            equal(next(again), batch)


def test_workers_and_threads_do_not_change_a_batch():
    config = DataConfig(source="digits", image_size=8, split="heldout", threads=0)
    workers = dataclasses.replace(config, workers=1, threads=1)
    plain, worked = (
        list(batches(c, 64, 0, wants=("image", "caption"), repeat=False)) for c in (config, workers)
    )
    assert len(plain) == len(worked) == 6
    for ours, theirs in zip(plain, worked):
        equal(ours, theirs)


def test_a_reader_process_that_is_killed_ends_in_a_sentence():
    config = DataConfig(source="digits", image_size=8, workers=1, threads=0)
    stream = batches(config, 4, 0, wants=("caption",))
    next(stream)
    [reader] = multiprocessing.active_children()
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    with pytest.raises(ReaderKilled, match=r"was killed.*; lower data.workers=1 .*start the same"):
        for _ in range(100_000):
            next(stream)


def processes(rows, states=None):
    """The batches of captions of every process, after those that ended in `states`."""
    parts = [
        batches(CONFIG, 4, 0, wants=("caption",), rows=rows, process=p) for p in range(len(rows))
    ]
    for part in parts if states else ():
        part.set_state(json.loads(json.dumps(states)))
    return parts


def test_another_number_of_processes_goes_on_with_the_batches_of_one(numbered):
    numbered(30)
    whole, states, read = numbers(batches(CONFIG, 4, 0, wants=("caption",)), 12), None, 0
    for rows in (HALVES, [range(4)], QUARTERS, [(0, 1), (0, 1), (2, 3), (2, 3)], HALVES):
        parts = processes(rows, states)
        for _ in range(2):
            batch = {
                row: number
                for of, part in zip(rows, parts)
                for row, number in zip(of, numbers(part, 1))
            }
            assert [batch[row] for row in range(4)] == whole[read : read + 4]
            read += 4
        states = [part.get_state() for part in parts]


def test_with_unusable_samples_too_nothing_comes_again_and_nothing_is_lost(numbered):
    bad = {3, 4, 5, 17, 40, 41, 42, 199}
    numbered(200, bad=bad)
    seen, states = [], None
    for rows, count in ((HALVES, 9), (QUARTERS, 13), (HALVES, 9), ([range(4)], 17)):
        parts = processes(rows, states)
        seen += [number for part in parts for number in numbers(part, count)]
        states = [part.get_state() for part in parts]
    assert sorted(seen) == sorted(set(range(200)) - bad)


def test_the_same_processes_go_on_exactly_where_unusable_samples_set_them_apart(numbered):
    numbered(60, bad=(1, 2))
    before = processes(HALVES)
    for part in before:
        numbers(part, 9)
    states = [part.get_state() for part in before]
    assert states[0]["taken"] != states[1]["taken"]
    after = [numbers(part, 8) for part in processes(HALVES, states)]
    assert after == [numbers(part, 8) for part in before]


def test_processes_that_read_the_same_rows_go_on_with_the_same_samples(numbered):
    """Although one of them had come upon a file that was damaged on its machine alone."""
    rows = [(0, 1), (0, 1), (2, 3), (2, 3)]
    numbered(40)
    states = [part.get_state() for part in processes(rows)]
    states[3]["taken"] += 1
    mine, same, theirs, others = (numbers(part, 4) for part in processes(rows, states))
    assert mine == same and theirs == others


def test_a_run_saved_by_an_earlier_version_goes_on(numbered):
    numbered(16)
    whole, one = (batches(CONFIG, 4, 0, wants=("caption",)) for _ in range(2))
    numbers(whole, 2)
    one.set_state([{"position": 8, "records": 16, "processes": 1}])
    assert numbers(one, 5) == numbers(whole, 5)
    with pytest.raises(UserError, match="saved by 2 processes in an older way"):
        one.set_state([{"position": 8, "records": 16, "processes": 2}])


def test_text_comes_from_the_captions(numbered):
    numbered(4)
    batch = next(
        batches(CONFIG, 4, 0, tokenize=tokenize, wants=("text", "text_mask"), repeat=False)
    )
    assert list(batch) == ["text", "text_mask"]
    np.testing.assert_array_equal(batch["text"][:, 0], [0, 1, 2, 3])


def test_stored_embeddings_are_padded_and_cut(numbered):
    numbered(3)
    wants = ("text_embeds", "text_mask")
    batch = next(batches(CONFIG, 3, 0, wants=wants, repeat=False))
    np.testing.assert_array_equal(batch["text_mask"], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(batch["text_embeds"][..., 0], [[0, 0, 0], [1, 1, 0], [2, 2, 2]])
    assert batch["text_embeds"].dtype == np.float32 and batch["text_mask"].dtype == bool
    for length in (2, 5):
        stream = batches(CONFIG, 3, 0, wants=wants, text_length=length, repeat=False)
        batch = next(stream)
        assert batch["text_embeds"].shape == (3, length, 2)
        said = ["cut: 1", "  stored text of more than 2 tokens: 1 (3 tokens)"]
        assert stream.cut.lines("cut") == (said if length == 2 else [])
        np.testing.assert_array_equal(batch["text_mask"].sum(1), np.minimum([1, 2, 3], length))
    numbered(6)
    stream = batches(CONFIG, 6, 0, wants=wants, text_length=2)
    next(stream), next(stream)  # two texts of three tokens, and both again
    assert stream.cut.metrics("") == {"stored text of more than 2 tokens": 2}


def test_cuts():
    image = np.broadcast_to(np.arange(8, dtype=np.uint8)[None, :, None] * 10, (4, 8, 3))
    np.testing.assert_array_equal(crop(image, 4, "center")[0, :, 0], [20, 30, 40, 50])
    lefts = {int(crop(image, 4, "random", np.random.default_rng(i))[0, 0, 0]) for i in range(60)}
    assert lefts == {0, 10, 20, 30, 40}
    squeezed = crop(image, 4, "resize")[0, :, 0]
    np.testing.assert_allclose(squeezed, [5, 25, 45, 65], atol=2)
    np.testing.assert_array_equal(
        crop(image, 4, "center").swapaxes(0, 1), crop(image.swapaxes(0, 1), 4, "center")
    )
    assert crop(image, 2, "center").shape == (2, 2, 3) and crop(image, 16, "center").shape == (
        16,
        16,
        3,
    )


def test_about_half_are_mirrored_and_every_epoch_anew(numbered):
    numbered(64)
    config = dataclasses.replace(CONFIG, flip=True)
    stream = batches(config, 64, 0, wants=("image", "caption"))
    mirrored = []
    for _ in range(2):
        batch = next(stream)
        order = np.argsort([int(c) for c in batch["caption"]])
        pixels = batch["image"].astype(int)
        mirrored.append((pixels[:, 0, 0, 0] > pixels[:, 0, -1, 0])[order])
    assert 20 <= mirrored[0].sum() <= 44 and (mirrored[0] != mirrored[1]).any()


def test_bad_samples_are_left_out_and_counted(numbered):
    numbered(40, bad=(3, 17))
    stream = batches(CONFIG, 5, 0, wants=("caption",), repeat=False)
    assert numbers(stream, 99) == [i for i in range(40) if i not in (3, 17)]
    assert stream.bad.by_reason == {"not an image": 2} and len(stream.bad.names) == 2


def test_too_many_bad_samples_stop_the_run(numbered):
    numbered(40, bad=(0, 1, 2, 5))
    stream = batches(CONFIG, 8, 0, wants=("image",), repeat=False)
    with pytest.raises(
        UserError, match=r"4 of \d+ samples cannot be used \(0.png: not an image; 1.png"
    ):
        list(stream)
    numbered(4, bad=(3,))
    with pytest.raises(UserError, match="1 of 4 samples"):
        list(batches(CONFIG, 2, 0, wants=("image",), repeat=False))
    numbered(3, bad=(0, 1, 2))
    with pytest.raises(UserError, match="has no sample that can be used"):
        next(batches(dataclasses.replace(CONFIG, max_bad_rate=1.0), 2, 0, wants=("image",)))


def test_records_without_what_is_wanted_are_bad(monkeypatch):
    monkeypatch.setattr(pipeline, "open_source", lambda *_, **__: Blind())
    stream = batches(CONFIG, 2, 0, wants=("image",), repeat=False)
    with pytest.raises(UserError, match="record 0: no image"):
        next(stream)
    assert next(batches(CONFIG, 2, 0, wants=("caption",), repeat=False)) == {
        "caption": ["words", "words"]
    }


def test_captions_alone_draw_nothing(monkeypatch):
    monkeypatch.setattr("t2i_jax.data.shapes.draw", None)  # calling it would fail
    stream = batches(DataConfig(image_size=12), 4, 0, wants=("caption",))
    assert all(parse(caption).things for caption in next(stream)["caption"])


def test_shapes_with_text():
    stream = batches(
        DataConfig(image_size=16),
        8,
        0,
        tokenize=lambda captions: (np.zeros((len(captions), 3), np.int32),) * 2,
    )
    batch = next(stream)
    assert batch["image"].shape == (8, 16, 16, 3) and batch["text"].shape == (8, 3)


@pytest.mark.parametrize("change,message", [
    ({"crop": "centre"}, "did you mean 'center'"),
    ({"image_size": 0}, "data.image_size=0"),
    ({"workers": -1}, "data.workers=-1"),
    ({"max_bad_rate": 5.0}, "data.max_bad_rate=5.0"),
])  # fmt: skip
def test_configurations_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**change)


def test_mistakes_are_refused(numbered):
    numbered(3)
    for named, message in (
        ({"wants": ("images",)}, "did you mean 'image'"),
        ({"wants": ("text",)}, "needs tokenize"),
        ({"wants": ("text_mask",)}, "want one of them too"),
    ):
        with pytest.raises(UserError, match=message):
            batches(CONFIG, 2, 0, **named)
    with pytest.raises(UserError, match="batch_size=0"):
        batches(CONFIG, 0, 0, wants=("image",))
    with pytest.raises(UserError, match="captions of shapes untrue"):
        batches(DataConfig(flip=True), 2, 0, wants=("image", "caption"))
    with pytest.raises(UserError, match="has 3 records and had 4"):
        batches(CONFIG, 2, 0, wants=("image",)).set_state(
            [{"position": 2, "records": 4, "processes": 1}]
        )
