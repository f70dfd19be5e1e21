"""Tar shards: what is one sample, captions of three kinds, and archives that end too soon."""

import contextlib
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given

from t2i_jax.data.archive import BEHIND, DAMAGED, UNMARKED
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.data.source import BadSample
from t2i_jax.data.webdataset import WebDatasetSource
from t2i_jax.errors import UserError
from tests.data.hostile import BAD, BAD_CAPTIONS, CONVERTED, damaged, encode, photo


def write(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def good(numbers):
    members = []
    for i in numbers:
        members += [
            (f"{i:04d}.png", encode(photo(i))),
            (f"{i:04d}.txt", f"image number {i}".encode()),
        ]
    return members


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "a-00.tar", good(range(3)))
    write(tmp_path / "a-01.tar", good(range(3, 7)))
    return tmp_path


def reason(source, index, read="__getitem__"):
    with pytest.raises(BadSample) as caught:
        getattr(source, read)(index)
    return caught.value.reason


@pytest.mark.parametrize("pattern", ["*.tar", "a-{00..01}.tar", "**/a-*.tar"])
def test_samples_of_all_shards_in_order(shards, pattern):
    source = WebDatasetSource(f"{shards}/{pattern}")
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == 7
    for i in (6, 0, 3):  # in any order
        for one in (source, copy):
            assert one[i]["caption"] == one.without_image(i)["caption"] == f"image number {i}"
            np.testing.assert_array_equal(one[i]["image"], np.asarray(photo(i)))
    assert source.without_image(1)["image"] is None and source.without_caption(1)["caption"] is None


def test_members_of_one_name_are_one_sample(tmp_path):
    image, other = encode(photo(1)), encode(photo(2))
    write(
        tmp_path / "a.tar",
        [
            ("x/1.JPG", encode(photo(), "JPEG")),
            ("y/1.webp", encode(photo(3), "WEBP")),
            ("x/1.mask.png", other),
            ("x/1.json", json.dumps({"width": 3, "text": " in  json "}).encode()),
            ("y/1.caption", b"y\xc3\xa9"),
            ("2.png", image),
            ("2.txt", b"words"),
            ("2.json", b"{}"),
            ("3.npy", b"0"),
            ("x", b"0"),
        ],
    )
    source = WebDatasetSource(str(tmp_path / "a.tar"))
    assert [source[i]["caption"] for i in range(len(source))] == ["in json", "y\xe9", "words"]
    np.testing.assert_array_equal(source[2]["image"], np.asarray(photo(1)))


def test_every_kind_of_image_is_converted_and_the_bad_are_counted(tmp_path):
    members = good(range(2))
    for name, (ending, data) in CONVERTED.items():
        members += [(name + ending, data), (name + ".txt", name.encode())]
    for name, (ending, data, _) in BAD.items():
        members += [(name + ending, data), (name + ".txt", b"words")]
    captions = [*BAD_CAPTIONS.items(), (b'{"caption": 3}', "no caption")]
    for i, (text, _) in enumerate(captions):
        members += [
            (f"c{i}.png", encode(photo())),
            (f"c{i}" + (".json" if b"{" in text else ".txt"), text),
        ]
    members += [
        ("j1.png", encode(photo())),
        ("j1.json", b"{"),
        ("j2.png", encode(photo())),
        ("j2.json", b"[1]"),
    ]
    members += [("silent.png", encode(photo())), ("blind.txt", b"no image")]
    write(tmp_path / "a.tar", members)
    config = DataConfig(source=f"webdataset:{tmp_path}/*.tar", image_size=8, max_bad_rate=1.0)
    stream = batches(config, 4, 0, wants=("image", "caption"), repeat=False)
    found = [caption for batch in stream for caption in batch["caption"]]
    assert found == ["image number 0", "image number 1", *CONVERTED]
    wanted = [r for *_, r in BAD.values()] + [r for _, r in captions]
    wanted += ["caption is not JSON", "no caption", "no caption", "no image"]
    assert stream.bad.by_reason == {r: wanted.count(r) for r in wanted}
    assert any("a.tar/empty.png" in name for name in stream.bad.names)
    images = [batch["image"] for batch in batches(config, 4, 0, wants=("image",), repeat=False)]
    # a tokenizer needs no captions
    assert sum(map(len, images)) == 2 + len(CONVERTED) + len(captions) + 3
    with pytest.raises(UserError, match=r"a.tar/empty.png: empty file"):
        list(
            batches(
                DataConfig(source=config.source), 4, 0, wants=("image", "caption"), repeat=False
            )
        )


def test_of_a_truncated_archive_what_is_whole_is_read(shards, capsys):
    whole = (shards / "a-01.tar").read_bytes()
    source = WebDatasetSource(f"{shards}/*.tar")
    cut = source._samples[5].image.offset + 10  # in the middle of the third image of four
    (shards / "a-01.tar").write_bytes(whole[:cut])
    # it shrank after it was opened
    assert reason(source, 5, "without_caption") == "truncated archive"
    damaged = WebDatasetSource(f"{shards}/*.tar")
    said = f"{shards / 'a-01.tar'} is damaged; it is read up to there, 3 samples\n"
    assert capsys.readouterr().err == said  # plain, whatever is done with logging
    assert [damaged[i]["caption"] for i in range(5)] == [f"image number {i}" for i in range(5)]
    assert (
        len(damaged) == 7
        and reason(damaged, 5, "without_caption") == reason(damaged, 6) == "truncated archive"
    )
    (shards / "a-01.tar").unlink()
    assert reason(source, 4) == "unreadable file"


def _read_of(path, data):
    """What is read of an archive of these bytes: captions and reasons, and what is told."""
    path.write_bytes(data)
    source = WebDatasetSource(str(path))
    found = [source._samples[i].reason or source[i]["caption"][-1] for i in range(len(source))]
    return "".join(found), list(source.passed_over.by_reason)


def test_an_archive_that_ends_too_soon_is_told_wherever_it_was_cut(tmp_path, capsys):
    write(tmp_path / "a.tar", good(range(4)))
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        starts = [member.offset for member in archive][2::2]  # of the samples 1, 2, 3
    for number, start in enumerate(starts, 1):
        found, told = _read_of(tmp_path / "b.tar", whole[:start])
        assert (found, told) == ("0123"[:number], [UNMARKED])
        assert f"which may have been cut; it is read up to there, {number} sample" in (
            capsys.readouterr().err
        )
        for cut in (whole[: start + 100], whole[:start] + b"x" * 512 + whole[start + 512 :]):
            assert _read_of(tmp_path / "b.tar", cut) == ("0123"[:number] + DAMAGED, [])
    assert _read_of(tmp_path / "b.tar", whole[: len(whole.rstrip(b"\0")) + 2048]) == ("0123", [])


def test_what_lies_behind_the_end_of_an_archive_is_read_or_told(tmp_path):
    for name, numbers in (("a.tar", range(2)), ("b.tar", range(2, 5))):
        write(tmp_path / name, good(numbers))
    first, second = ((tmp_path / name).read_bytes() for name in ("a.tar", "b.tar"))
    empty = b"\0" * 100_352
    assert _read_of(tmp_path / "c.tar", first + empty + second + empty) == ("01234", [])
    twice = ["name twice in an archive, read as two"]
    assert _read_of(tmp_path / "c.tar", first + first) == ("0101", twice)
    assert _read_of(tmp_path / "c.tar", first + empty + b"words") == ("01", [BEHIND])
    with tarfile.open(tmp_path / "b.tar") as archive:
        cut = archive.getmembers()[2].offset + 100  # within the header of its second sample
    assert _read_of(tmp_path / "c.tar", first + second[:cut]) == (f"012{DAMAGED}", [])


def test_mistakes_are_refused(tmp_path):
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"hello" * 500)
    with tarfile.open(tmp_path / "small.gz", "w:gz"):
        pass
    write(tmp_path / "none.tar", [("a.npy", b"0")])
    write(tmp_path / "captions.tar", [("a.txt", b"0")])
    write(tmp_path / "left.tar", [("._a.png", b"0")])
    (tmp_path / "folder.tar").mkdir()
    for name, message in {
        "*.zip": "matches no file", "empty.tar": "can't be read as a tar", "text.tar": "can't be read as a tar",  # noqa: E501
        "small.gz": "unpack .gz", "none.tar": "holds no images", "captions.tar": "holds no images",
        "left.tar": "no images .there are left.tar/._a.png: leftover of another program.; they",
        "folder.tar": "is a folder; name the tar files", "a-{0..99999999999}.tar": "has the range",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            WebDatasetSource(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_names_with_dots_lose_no_image(tmp_path):
    members = []
    for i in (1, 2, 3):
        members += [(f"img.{i:04d}.png", encode(photo(i))), (f"img.{i:04d}.txt", f"{i}".encode())]
    members += [("v1.5.png", encode(photo(4))), ("v1.5.json", b'{"text": "4"}')]
    members += [("x.png", encode(photo(5))), ("x.png.txt", b"5"), ("x.mask.png", encode(photo()))]
    write(tmp_path / "a.tar", members)
    source = WebDatasetSource(str(tmp_path / "a.tar"))
    assert [source[i]["caption"] for i in range(len(source))] == ["1", "2", "3", "4", "5"]
    for i in range(5):
        np.testing.assert_array_equal(source[i]["image"], np.asarray(photo(i + 1)))
    assert source.passed_over.by_reason == {"image beside another of its sample": 1}
    assert source.passed_over.names[0].startswith("a.tar/x.mask.png: ")


def test_capital_letters_make_no_difference_unless_both_are_there(tmp_path):
    members = [(name, encode(photo())) for name in ("d/A.PNG", "b.png", "B.png", "Img.01.png")]
    for name in ("d/a.txt", "D/a.json", "B.txt", "b.txt", "c.txt", "img.01.txt", "d/A.npy"):
        members += [(name, name.encode())]
    members[4:4] = [("\xe9.png", members[0][1]), ("./e\u0301.txt", b"letters as macOS writes them")]
    write(tmp_path / "a.tar", members)
    source = WebDatasetSource(str(tmp_path / "a.tar"))
    found = [source.caption(i) for i in range(5)]
    assert found == ["d/a.txt", "b.txt", "B.txt", "img.01.txt", "letters as macOS writes them"]
    assert [reason(source, i) for i in range(5, len(source))] == ["no image"] * 2  # c, D/a
    assert source.passed_over.names == ["a.tar/d/A.npy: member beside another of its sample"]


def test_a_name_that_comes_twice_is_two_samples_and_told(tmp_path):
    write(tmp_path / "a.tar", good([1]) + good([1]) + good([2]))
    source = WebDatasetSource(str(tmp_path / "a.tar"))
    assert [source[i]["caption"][-1] for i in range(len(source))] == ["1", "1", "2"]
    assert source.passed_over.by_reason == {"name twice in an archive, read as two": 1}


def test_members_that_are_no_files_are_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, kind in enumerate(
            (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
        ):
            member = tarfile.TarInfo(f"{i}.png")
            member.type, member.linkname = kind, "/dev/zero"
            archive.addfile(member)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in [
            *((f"./{name}", data) for name, data in good([7])),
            ("._0007.png", b"x"),
            ("__MACOSX/0007.png", b"x"),
            ("d/.ipynb_checkpoints/a-checkpoint.png", b"x"),
            ("./d/@eaDir/a.png", b"x"),
            ("d/.hidden.png", b"x"),
            ("Thumbs.db", b"x"),
            ("a.npy", b""),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    source = WebDatasetSource(str(tmp_path / "a.tar"))
    assert len(source) == 1 and source[0]["caption"] == "image number 7"
    assert source.passed_over.by_reason == {
        "member that is no file": 4,
        "leftover of another program": 6,
        "member that ends in .npy": 1,
    }


def test_a_hidden_folder_around_all_members_hides_none(tmp_path):
    """As in an archive that was made of a folder below ~/.cache."""
    above = "./home/me/.cache/set"
    below = [(f"{above}/{name}", data) for name, data in good([7, 8])]
    left = [(f"{above}/{name}", b"x") for name in (".git/a.png", "._0007.png", "@eaDir/7.png")]
    write(tmp_path / "a.tar", [("._.", b"x"), *below, *left])
    source = WebDatasetSource(str(tmp_path / "a.tar"))
    assert [source[i]["caption"] for i in range(len(source))] == [
        f"image number {i}" for i in (7, 8)
    ]
    assert source.passed_over.by_reason == {"leftover of another program": 4}


def _header(name, size, kind=b"0"):
    """A header whose size is a number of 12 bytes, which may be negative or beyond all files."""
    member = tarfile.TarInfo(name)
    data = bytearray(member.tobuf())
    data[124:136] = (
        (size % 2**96).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    )
    data[156:157] = kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"S", b"1"])
@pytest.mark.parametrize("size", [-512, -1, -(2**80), 2**40, 2**80])
def test_a_size_that_cannot_be_ends_the_archive_there(tmp_path, kind, size):
    write(tmp_path / "a.tar", good([1, 2]))
    whole = (tmp_path / "a.tar").read_bytes()
    end = max(i for i in range(0, len(whole), 512) if whole[i : i + 512].strip(b"\0")) + 512
    (tmp_path / "b.tar").write_bytes(whole[:end] + _header("x.png", size, kind) + whole[end:])
    source = WebDatasetSource(f"{tmp_path}/b.tar")
    assert [source[i]["caption"][-1] for i in range(2)] == ["1", "2"]
    for i in range(2, len(source)):
        assert reason(source, i, "without_caption") in ("truncated archive", "file too large")


def _archive():
    """Bytes of an archive whose names are so long that they have headers of their own."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in good([1, 2]):
            member = tarfile.TarInfo("\xe9" * 120 + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


@given(damaged(_archive()))
def test_a_damaged_archive_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(data)
    try:
        source = WebDatasetSource(str(path))
    except UserError as error:
        assert "\n" not in str(error)
        return
    for i in range(len(source)):
        with contextlib.suppress(BadSample):
            source[i]


def test_patterns_are_bounded_by_what_is_there(shards):
    for pattern in ("{0..999999}{0..999999}.tar", "a-{0..999}{0..999}{0..999999}.tar"):
        with pytest.raises(UserError, match="matches no file"):
            WebDatasetSource(f"{shards}/{pattern}")
    source = WebDatasetSource(f"{shards}/a-{{00..99}}.tar")
    assert len(source) == 7
    assert source.passed_over.lines("passed over")[1].endswith(f": 98 ({shards}/a-02.tar, ...)")
    assert len(WebDatasetSource(f"{shards}/a-0{{0..1}}.tar")) == 7
    assert len(WebDatasetSource(f"{shards}/{{a,b}}-{{00..01}}.tar")) == 7
    assert len(WebDatasetSource(f"{shards}/?-{{01..01}}.tar")) == 4
    with pytest.raises(UserError, match="matches no file"):
        WebDatasetSource(f"{shards}/a-{{0..1}}.tar")  # 0 is not 00
    with pytest.raises(UserError, match="more than 1000 patterns"):
        WebDatasetSource("{a,b,c,d}" * 30 + ".tar")


def test_a_pipe_or_a_device_is_no_shard(shards):
    os.mkfifo(shards / "pipe.tar")
    (shards / "zero.tar").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(UserError, match=f"{name}.tar' can't be read as a tar file.*no regular"):
            WebDatasetSource(str(shards / f"{name}.tar"))
