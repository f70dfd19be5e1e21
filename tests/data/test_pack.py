"""Packing: what comes back is what went in, bad samples are counted, nothing is left half done."""

import json

import numpy as np
import pytest

from t2i_jax.data import columns
from t2i_jax.data.arrayrecord import PackedSource, ShardWriter, write_manifest
from t2i_jax.data.columns import add_column, is_wanted
from t2i_jax.data.folder import FolderSource
from t2i_jax.data.pack import pack
from t2i_jax.data.shapes import Shapes
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError
from tests.data.hostile import BAD, BAD_CAPTIONS, CONVERTED, encode, photo

COUNT = 4 + len(CONVERTED)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(4):
        (place / f"{i}.png").write_bytes(encode(photo(i)))
        (place / f"{i}.txt").write_text(f"image n\xba {i}", encoding="utf-8")
    for name, (ending, data) in CONVERTED.items():
        (place / (name + ending)).write_bytes(data)
        (place / (name + ".txt")).write_text(name)
    return place


def test_what_comes_back_is_what_went_in(folder, tmp_path):
    source, out = FolderSource(str(folder)), tmp_path / "packed"
    manifest = pack(source, out, name="folder:photos", shard_bytes=1000)
    packed = PackedSource(str(out))
    assert len(packed) == len(source) == manifest["count"] == COUNT and manifest["bad"] == {}
    for i in range(COUNT):
        assert packed[i]["caption"] == source[i]["caption"]
        for channels in (1, 3, 4):  # what is seen; the colour of what is clear is free
            found, wanted = (one.in_channels(channels)[i]["image"] for one in (packed, source))
            seen = wanted[..., -1:] > 0 if channels == 4 else True
            np.testing.assert_array_equal(found * seen, wanted * seen)
    assert packed.file(0)[0] == (folder / "0.png").read_bytes()  # as it was
    assert (
        len(manifest["shards"]) > 2 and sum(shard["count"] for shard in manifest["shards"]) == COUNT
    )
    names = sorted(path.name for path in out.iterdir())
    total = len(manifest["shards"])
    assert names == [
        *(f"data-{i:05d}-of-{total:05d}.arrayrecord" for i in range(total)),
        "manifest.json",
    ]
    assert manifest == json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert (
        manifest["pictures"]["width"]["least"] == 8 and manifest["pictures"]["width"]["most"] == 20
    )
    again = pack(packed, tmp_path / "again", name="arrayrecord:packed")
    assert (
        again["count"] == COUNT
        and PackedSource(str(tmp_path / "again")).file(9)[0] == packed.file(9)[0]
    )


def test_a_set_without_files_is_packed_too(tmp_path):
    source = Shapes(16, length=5)
    pack(source, tmp_path / "packed", name="shapes")
    packed = PackedSource(str(tmp_path / "packed"))
    for i in range(5):
        assert packed[i]["caption"] == source[i]["caption"]
        np.testing.assert_array_equal(packed[i]["image"], source[i]["image"])


def test_images_are_made_smaller_but_not_larger(tmp_path):
    for name, size, kind in (
        ("a.jpg", (60, 40), "JPEG"),
        ("b.png", (30, 90), "PNG"),
        ("c.png", (12, 12), "PNG"),
    ):
        (tmp_path / name).write_bytes(encode(photo(size=size), kind))
    manifest = pack(
        FolderSource(str(tmp_path)), tmp_path / "out", name="x", size=20, captions=False
    )
    packed = PackedSource(str(tmp_path / "out"))
    shapes = [packed.without_caption(i)["image"].shape for i in range(3)]
    assert shapes == [(20, 30, 3), (60, 20, 3), (12, 12, 3)] and manifest["size"] == 20
    assert [packed.file(i)[0][:2] for i in range(3)] == [b"\xff\xd8", b"\x89P", b"\x89P"]
    assert packed.without_image(0)["caption"] is None
    with pytest.raises(BadSample, match="no caption"):
        packed[0]


def test_bad_samples_are_left_out_and_counted_by_reason(folder, tmp_path):
    for name, (ending, data, _) in BAD.items():
        (folder / (name + ending)).write_bytes(data)
        (folder / (name + ".txt")).write_text("words")
    for i, text in enumerate(BAD_CAPTIONS):
        (folder / f"bad{i}.png").write_bytes(encode(photo()))
        (folder / f"bad{i}.txt").write_bytes(text)
    source = FolderSource(str(folder))
    manifest = pack(source, tmp_path / "out", name="x", max_bad_rate=0.5)
    reasons = [reason for *_, reason in BAD.values()] + list(BAD_CAPTIONS.values())
    assert manifest["bad"] == {reason: reasons.count(reason) for reason in reasons}
    assert manifest["count"] == COUNT and len(manifest["bad_names"]) == 5
    packed = PackedSource(str(tmp_path / "out"))
    then = {f"{reason} (when it was packed)": reasons.count(reason) for reason in reasons}
    assert packed.passed_over.different == then
    again = pack(packed, tmp_path / "again", name="out")
    assert again["passed_over"] == then and not again["bad"]
    assert PackedSource(str(tmp_path / "again")).passed_over.different == then
    first = f"{manifest['bad_names'][0]} (when it was packed)"
    assert first in packed.passed_over.names

    says = r"\d of \d+ samples cannot be used \(bad0.png.* raise --max-bad-rate"
    with pytest.raises(UserError, match=says):
        pack(source, tmp_path / "none", name="x", max_bad_rate=0.1)
    with pytest.raises(UserError, match="no sample that can be used"):
        bad = tmp_path / "bad"
        bad.mkdir()
        (bad / "a.png").write_bytes(b"")
        pack(FolderSource(str(bad)), tmp_path / "none", name="x", max_bad_rate=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again", "bad", "out", "photos",
    ]  # fmt: skip


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("full", "file"):
        with pytest.raises(UserError, match="exists and is not empty"):
            pack(Shapes(16, length=2), tmp_path / name, name="shapes")
    with pytest.raises(UserError, match="leads through .*a file"):
        pack(Shapes(16, length=2), tmp_path / "file" / "below", name="shapes")
    with pytest.raises(UserError, match="size=0"):
        pack(Shapes(16, length=2), tmp_path / "new", name="shapes", size=0)
    (tmp_path / "empty").mkdir()
    pack(Shapes(16, length=2), tmp_path / "empty", name="shapes")
    assert len(PackedSource(str(tmp_path / "empty"))) == 2
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine.txt").read_text() == "keep"


def tokens(count):
    return [{"tokens": np.arange(4, dtype=np.int32) + i} for i in range(count)]


def test_a_column_lies_beside_the_records(tmp_path):
    out = tmp_path / "packed"
    pack(Shapes(16, length=6), out, name="shapes")
    manifest = add_column(out, "tokens", tokens(6), about={"codebook_size": 16}, shard_bytes=60)
    assert (
        manifest["columns"]["tokens"]["codebook_size"] == 16
        and len(manifest["columns"]["tokens"]["shards"]) > 1
    )
    packed = PackedSource(str(out))
    for i in (5, 0):
        for record in (packed[i], packed.without_image(i), packed.without_caption(i)):
            np.testing.assert_array_equal(record["tokens"], np.arange(4) + i)
    assert not is_wanted(out, "tokens", {"codebook_size": 16})
    assert is_wanted(out, "text", {})
    with pytest.raises(UserError, match=r"has tokens of codebook_size=16; give --replace"):
        is_wanted(out, "tokens", {"codebook_size": 32})
    with pytest.raises(UserError, match=r"has tokens of codebook_size=16; give --replace"):
        is_wanted(out, "tokens", {"made_by_another": 1})  # its own fields say what it is
    assert is_wanted(out, "tokens", {"codebook_size": 32}, replace=True)
    assert len(PackedSource(str(out))[5]["tokens"]) == 4  # they stay until there are others


def test_a_column_that_is_replaced_stays_until_the_other_one_is_whole(tmp_path, monkeypatch):
    out = tmp_path / "packed"
    pack(Shapes(16, length=6), out, name="shapes")
    add_column(out, "tokens", tokens(6), about={"made": 0}, shard_bytes=60)

    def stopped():
        yield from tokens(4)
        raise KeyboardInterrupt

    def refused(*_):
        raise UserError("the disk is full")

    def check(made):
        source = PackedSource(str(out))
        assert source.stored["tokens"]["made"] == made
        np.testing.assert_array_equal(source[5]["tokens"], np.arange(4) + 5 + made)
        named = {shard["file"] for shard in source.stored["tokens"]["shards"]}
        assert {path.name for path in out.glob("tokens*")} == named

    def others(made):
        return [{"tokens": row["tokens"] + made} for row in tokens(6)]

    for rows, error in ((stopped(), KeyboardInterrupt), (tokens(5), UserError)):
        with pytest.raises(error):
            add_column(out, "tokens", rows, about={"made": 1})
        check(0)
    with monkeypatch.context() as patched, pytest.raises(UserError):
        patched.setattr(columns, "write_manifest", refused)
        add_column(out, "tokens", others(1), about={"made": 1})
    check(0)
    for made in (1, 2, 3):
        (out / "tokens.new-00009.partial").write_text("of a killed command")
        add_column(out, "tokens", others(made), about={"made": made}, shard_bytes=60 * made)
        check(made)


def test_a_damaged_column_can_be_made_anew(tmp_path):
    out = tmp_path / "packed"
    pack(Shapes(16, length=6), out, name="shapes")
    manifest = add_column(out, "tokens", tokens(6), about={"made": 0})
    (out / manifest["columns"]["tokens"]["shards"][0]["file"]).unlink()
    for refused in (lambda: PackedSource(str(out)), lambda: is_wanted(out, "tokens", {"made": 0})):
        with pytest.raises(UserError, match=r"is missing; .* encode tokens anew with --replace\."):
            refused()
    assert is_wanted(out, "tokens", {"made": 0}, replace=True)
    assert PackedSource(str(out), columns=())[5]["caption"]
    add_column(out, "tokens", tokens(6), about={"made": 0})
    assert len(PackedSource(str(out))[5]["tokens"]) == 4


def test_a_column_that_failed_leaves_nothing(tmp_path):
    out = tmp_path / "packed"
    pack(Shapes(16, length=6), out, name="shapes")
    before = sorted(out.iterdir())
    with pytest.raises(UserError, match="has 6 records, not 5"):
        add_column(out, "tokens", tokens(5), about={})
    with pytest.raises(UserError, match=r"2 of 6 samples cannot be used \(3: damaged"):
        add_column(
            out,
            "tokens",
            [*tokens(3), *[BadSample("damaged record", "3")] * 2, *tokens(1)],
            about={},
        )

    def stopped():
        yield from tokens(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_column(out, "tokens", stopped(), about={})
    assert sorted(out.iterdir()) == before and "tokens" not in PackedSource(str(out))[0]


def test_a_row_that_could_not_be_computed_is_empty(tmp_path):
    pack(Shapes(16, length=3), tmp_path / "packed", name="shapes")
    rows = [*tokens(1), BadSample("damaged record", "1"), *tokens(1)]
    manifest = add_column(tmp_path / "packed", "tokens", rows, about={}, max_bad_rate=0.5)
    packed = PackedSource(str(tmp_path / "packed"))
    assert manifest["columns"]["tokens"]["bad"] == {"damaged record": 1}
    assert [packed.without_image(i).get("tokens") is None for i in range(3)] == [False, True, False]


def test_names_and_captions_that_are_no_text(folder, tmp_path):
    # as a folder of Latin-1 names is listed
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    try:
        (folder / name).write_bytes(b"")
    except OSError:
        pytest.skip("file names are text here")
    (folder / name).with_suffix(".txt").write_text("words")
    manifest = pack(
        FolderSource(str(folder)), tmp_path / "out", name="folder:photos", max_bad_rate=0.5
    )
    assert manifest["bad_names"] == ["caf\\udce9.png: empty file"]
    (folder / "captions.jsonl").write_text(
        '{"file": "0.png", "text": "\\ud800"}\n{"file": "1.png", "text": "whole"}'
    )
    manifest = pack(
        FolderSource(str(folder)), tmp_path / "table", name="folder:photos", max_bad_rate=0.5
    )
    assert manifest["count"] == 1 and manifest["bad"] == {"caption is not UTF-8": 1}


def test_damaged_notes_beside_the_pixels_do_no_harm(tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20)
    (tmp_path / "a.jpg").write_bytes(encode(photo(), "JPEG", exif=exif))
    pack(FolderSource(str(tmp_path)), tmp_path / "out", name="x", captions=False)
    assert PackedSource(str(tmp_path / "out")).without_caption(0)["image"].shape == (16, 20, 3)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    writer = ShardWriter(tmp_path / "none", "data", 100)
    with pytest.raises(UserError, match="can't be written to"):
        for _ in range(3):
            writer.write(b"x" * 200)
        writer.close()
    with pytest.raises(UserError, match="can't be written to"):
        write_manifest(tmp_path / "none", {})


def test_packing_holds_little_at_once(tmp_path, monkeypatch):
    """Records are asked for no further ahead than a window, so a set need not fit into memory."""
    written = []
    monkeypatch.setattr("t2i_jax.data.pack.record_to_bytes", lambda *_: written.append(1) or b"x")

    def watch(indices):
        for index in indices:
            assert index - len(written) <= 64
            yield index

    pack(Shapes(16, length=300), tmp_path / "packed", name="shapes", progress=watch)
    assert len(written) == 300
