"""Packed sets: random access, and manifests, shards and records that are damaged."""

import concurrent.futures
import json
import os
import pickle
import shutil

import chex
import ml_dtypes
import numpy as np
import pytest

from t2i_jax.data.arrayrecord import PackedSource, ShardWriter, arrays_from_bytes, arrays_to_bytes
from t2i_jax.data.columns import add_column
from t2i_jax.data.pack import pack
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.data.shapes import Shapes
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError

LENGTH = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A packed set with both columns, in several shards."""
    out = tmp_path_factory.mktemp("sets") / "packed"
    pack(Shapes(16, length=LENGTH), out, name="shapes", shard_bytes=2000)
    text = [
        {
            "text_embeds": np.full((1 + i % 3, 4), i, ml_dtypes.bfloat16),
            "text_mask": np.ones(1 + i % 3, bool),
        }
        for i in range(LENGTH)
    ]
    add_column(out, "text", text, about={"dim": 4}, shard_bytes=300)
    add_column(
        out, "tokens", [{"tokens": np.full(9, i, np.int16)} for i in range(LENGTH)], about={}
    )
    return out


@pytest.fixture
def packed(made, tmp_path):
    """A copy that may be damaged."""
    out = tmp_path / "packed"
    out.mkdir()
    for path in made.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def read(out, wants, max_bad_rate=0.0, **more):
    config = DataConfig(source=f"arrayrecord:{out}", image_size=16, max_bad_rate=max_bad_rate)
    stream = batches(config, LENGTH, 0, wants=wants, repeat=False, **more)
    return next(stream), stream.bad.by_reason


def test_batches_of_all_that_is_stored(made, monkeypatch):
    wants = ("image", "caption", "tokens", "text_embeds", "text_mask")
    batch, _ = read(made, wants, text_length=4)
    chex.assert_shape([batch["image"], batch["tokens"]], [(LENGTH, 16, 16, 3), (LENGTH, 9)])
    np.testing.assert_array_equal(batch["tokens"][:, 0], np.arange(LENGTH))
    np.testing.assert_array_equal(batch["text_mask"].sum(1), 1 + np.arange(LENGTH) % 3)
    np.testing.assert_array_equal(batch["text_embeds"][:, 0, 0], np.arange(LENGTH))
    assert batch["text_embeds"].shape == (LENGTH, 4, 4) and batch["text_embeds"].dtype == np.float32
    assert batch["caption"] == [Shapes(16)[i]["caption"] for i in range(LENGTH)]
    monkeypatch.setattr(PackedSource, "_arrays", None)  # captions alone read no column
    assert read(made, ("caption",))[0] == {"caption": batch["caption"]}


def test_from_many_threads_and_after_pickling(made):
    source = pickle.loads(pickle.dumps(PackedSource(str(made))))
    captions = [Shapes(16)[i]["caption"] for i in range(LENGTH)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        order = [i * 7 % LENGTH for i in range(200)]
        found = list(pool.map(lambda i: source.without_image(i)["caption"], order))
    assert found == [captions[i] for i in order]
    assert pickle.loads(pickle.dumps(source))[3]["caption"] == captions[3]
    with pytest.raises(IndexError):
        source[LENGTH]
    with pytest.raises(IndexError):
        source[-1]


def test_worker_processes_read_the_same(made):
    plain, worked = (
        next(
            batches(
                DataConfig(f"arrayrecord:{made}", 16, workers=workers),
                8,
                0,
                wants=("image", "tokens"),
            )
        )
        for workers in (0, 1)
    )
    for name in plain:
        np.testing.assert_array_equal(plain[name], worked[name])


def test_a_damaged_record_is_one_bad_sample(packed):
    path = sorted(packed.glob("data-*"))[1]
    data = bytearray(path.read_bytes())
    data[150:180] = bytes(30)
    path.write_bytes(data)
    batch, bad = read(packed, ("caption",), max_bad_rate=1.0)
    assert bad["damaged record"] >= 1 and len(batch["caption"]) == LENGTH - bad["damaged record"]
    with pytest.raises(UserError, match=r"data-00001-of-\d+.arrayrecord\[0\]: damaged record"):
        read(packed, ("caption",))


def test_records_of_something_else_are_bad(packed):
    manifest = json.loads((packed / "manifest.json").read_text())
    writer = ShardWriter(packed, "other", 10**6)
    records = [
        b"",
        b"\xc1",
        b"hello",
        b"\x01",
        b"\x80",
        b"\x81\xa5image\x01",
        b"\x82\xa5image\xc4\x01x\xa7caption\x01",
    ]
    for data in records:
        writer.write(data)
    manifest |= {"shards": writer.close(), "columns": {}}
    (packed / "manifest.json").write_text(json.dumps(manifest))
    source = PackedSource(str(packed))
    for i in range(len(records)):
        with pytest.raises(BadSample):
            source[i]


def test_a_damaged_column_hurts_only_who_wants_it(packed):
    path = next(packed.glob("tokens-*"))
    path.write_bytes(bytes(path.stat().st_size))
    _, bad = read(packed, ("image", "caption"))
    assert not bad
    with pytest.raises(UserError, match="no tokens"):
        read(packed, ("tokens",))


def test_numbers_that_cannot_be_right_are_bad_samples(packed):
    """Ids that the codebook does not have, and a NaN, in one record each."""
    rows = [{"tokens": np.full(9, i, np.int16)} for i in range(LENGTH)]
    rows[2]["tokens"] = np.full(9, 4 * LENGTH, np.int16)
    rows[3]["tokens"] = np.full(9, -1, np.int16)
    texts = [{"text_embeds": np.ones((2, 3), np.float16), "text_mask": np.ones(2, bool)}] * LENGTH
    texts[1] = {**texts[1], "text_embeds": np.full((2, 3), np.nan, np.float16)}
    shutil.rmtree(packed)
    pack(Shapes(16, length=LENGTH), packed, name="shapes")
    add_column(packed, "tokens", rows, about={"codebook_size": LENGTH})
    pairs = [
        {"superres_tokens": np.zeros(4, np.uint16), "cond_tokens": row["tokens"]} for row in rows
    ]
    add_column(packed, "superres_tokens", pairs, about={"codebook_size": LENGTH})
    add_column(packed, "text", texts, about={})
    vectors = {"image_embeds": np.ones(4, np.float32), "caption_embeds": np.ones(4, np.float32)}
    broken = {"image_embeds": np.full(4, np.inf, np.float32)}
    add_column(packed, "clip", [{**vectors, **broken}, *[vectors] * (LENGTH - 1)], about={})
    for wants, reason, count in (
        (("image_embeds",), "embeddings that are not finite", 1),
        (("tokens",), f"tokens outside 0 to {LENGTH - 1}", 2),
        (("superres_tokens", "cond_tokens"), f"cond_tokens outside 0 to {LENGTH - 1}", 2),
        (("caption", "text_embeds"), "embeddings that are not finite", 1),
    ):
        batch, bad = read(packed, wants, max_bad_rate=0.9, text_length=4)
        assert bad == {reason: count} and len(batch[wants[-1]]) == LENGTH - count
    _, bad = read(packed, ("image", "caption"))
    assert not bad


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32", "bool"])
def test_arrays_survive(dtype):
    array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    back = arrays_from_bytes(arrays_to_bytes({"a": array, "b": array[:0]}))
    assert back["a"].dtype == array.dtype and back["b"].shape == (0, 3)
    np.testing.assert_array_equal(back["a"].astype(float), array.astype(float))


def test_arrays_of_something_else_are_bad():
    data = arrays_to_bytes({"a": np.arange(6)})
    other_type, other_shape = (
        data.replace(b"int64", b"int99"),
        data.replace(b"\x91\x06", b"\x91\x07"),
    )
    for damaged in (b"", data[:-3], b"\x81\xa1a\x01", other_type, other_shape):
        with pytest.raises(BadSample, match="damaged record"):
            arrays_from_bytes(damaged)


def test_a_missing_or_cut_shard_is_refused_before_reading(packed):
    paths = sorted(packed.glob("data-*"))
    paths[0].write_bytes(paths[0].read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"data-00000-of-\d+.arrayrecord has \d+ bytes instead of"):
        PackedSource(str(packed))
    paths[0].unlink()
    with pytest.raises(UserError, match=r"data-00000-of-\d+.arrayrecord is missing"):
        PackedSource(str(packed))


def test_damaged_manifests_are_refused(packed):
    path = packed / "manifest.json"
    good = json.loads(path.read_text())
    for text in ("", "{", "[]", "null", '{"format": 3}', "\xff", "[" * 10_000,
                 json.dumps({**good, "shards": [3]}), json.dumps({**good, "columns": {"text": []}}),
                 json.dumps({**good, "columns": {"text": {}}}), json.dumps({**good, "shards": None})):  # fmt: skip # noqa: E501
        path.write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"^arrayrecord=.*manifest.json.* again\.$"):
            PackedSource(str(packed))
    text = good["columns"]["text"]
    for field, value in {"codebook_size": "x", "max_length": None, "shards": {}}.items():
        path.write_text(json.dumps({**good, "columns": {"text": {**text, field: value}}}))
        with pytest.raises(UserError, match=rf"damaged manifest.json \(columns.text.{field} is"):
            PackedSource(str(packed))
    for value in ("24", None, -1, 2.0):
        path.write_text(json.dumps({**good, "count": value}))
        with pytest.raises(UserError, match=r"damaged manifest.json \(count is missing, or"):
            add_column(packed, "tokens", [], about={})
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="manifest.json' is not a file; give a regular file"):
        PackedSource(str(packed))
    path.unlink()
    for count in (-5, 2.5, True, None, "3"):
        shards = [{**good["shards"][0], "count": count}]
        path.write_text(json.dumps({**good, "shards": shards}))
        with pytest.raises(UserError, match="damaged manifest.json"):
            PackedSource(str(packed))
    for count in (10**12, 10**30, 0, 1):
        shards = [{**good["shards"][0], "count": count}, *good["shards"][1:]]
        path.write_text(json.dumps({**good, "shards": shards}))
        with pytest.raises(UserError, match=rf"holds \d+ records, and manifest.json says {count};"):
            PackedSource(str(packed))
    path.write_text(json.dumps({**good, "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        PackedSource(str(packed))
    shorter = {"text": {**good["columns"]["text"], "shards": good["columns"]["text"]["shards"][:1]}}
    path.write_text(json.dumps({**good, "columns": shorter}))
    with pytest.raises(UserError, match="24 records and [0-9]+ of text"):
        PackedSource(str(packed))
    path.unlink()
    for place in (packed, packed / "none"):
        with pytest.raises(UserError, match="has no manifest.json"):
            PackedSource(str(place))
