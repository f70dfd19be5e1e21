"""A user's folder: captions in files and tables of many kinds, and things that are no images."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from t2i_jax.data.arrayrecord import PackedSource
from t2i_jax.data.caption import JOINED, SEVERAL
from t2i_jax.data.folder import FolderSource
from t2i_jax.data.overview import look
from t2i_jax.data.pack import pack
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError
from t2i_jax.runs.scoring.sources import source_spec


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(["a.JPG", "deep/b.png", "c.webp"]):
        Image.new("RGB", (30 + i, 24), (40 * i, 90, 90)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"image\nnumber {i} \n")
    return tmp_path


def test_text_files_beside_the_images(folder):
    source = FolderSource(str(folder))
    assert [source[i]["caption"] for i in range(3)] == [
        "image number 0",
        "image number 2",
        "image number 1",
    ]
    assert source[1]["image"].shape == (24, 32, 3)
    assert source.without_image(0) == {"image": None, "caption": "image number 0"}


def test_images_of_one_name_have_captions_of_their_own_by_the_whole_name(folder):
    for other in ("a.gif", "a.webp"):
        (folder / other).write_bytes((folder / "c.webp").read_bytes())
    (folder / "a.JPG.txt").write_text("a.JPG.txt")
    (folder / "a.webp.json").write_text('{"caption": "a.webp.json"}')
    (folder / "c.webp.txt").write_text("not meant: there is one c alone")
    source = FolderSource(str(folder))
    found = {name: text for name, text in captions_of(source).items() if name < "d"}
    assert found == {
        "a.JPG": "a.JPG.txt", "a.gif": "image number 0", "a.webp": "a.webp.json",
        "c.webp": "image number 2",
    }  # fmt: skip
    assert source.passed_over.names == ["c.webp.txt: file of .txt that no image takes"]


def test_a_caption_file_of_several_lines_is_read_as_one_and_counted(folder):
    for text in folder.rglob("*.txt"):
        text.write_text("\n a caption \n")
    (folder / "a.txt").write_text("a red circle\r\n\r\na circle\tthat is red\n")
    source = FolderSource(str(folder))
    assert captions_of(source)["a.JPG"] == "a red circle a circle that is red"
    assert source.read_in_part.examples == {JOINED: ["a.JPG"]}
    assert look(source, wants=("caption",)).read_in_part.by_reason == {JOINED: 1}


def test_tables_of_captions(folder):
    (folder / "captions.jsonl").write_text(
        json.dumps({"file_name": "a.JPG", "text": "from a line"}) + "\n\n"
    )
    assert [FolderSource(str(folder))[0]["caption"]] == ["from a line"]
    rows = [{"file_name": "a.JPG", "text": ["one", "two"]}, {"img": "c.webp", "texts": ["one"]}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = FolderSource(str(folder))
    assert captions_of(source) == {"a.JPG": "one", "c.webp": "one"}
    assert source.read_in_part.examples[SEVERAL] == ["a.JPG"]
    looked = [look(source, wants=("caption",)) for _ in range(2)]
    assert [one.read_in_part.by_reason for one in looked] == [{SEVERAL: 1}] * 2
    assert SEVERAL not in source.passed_over.different
    manifest = pack(source, folder / "out", name="x")
    assert manifest["read_in_part"] == {SEVERAL: 1} and SEVERAL not in manifest["passed_over"]
    then = look(PackedSource(str(folder / "out"))).read_in_part
    assert then.examples == {f"{SEVERAL} (when it was packed)": ["x"]}
    (folder / "captions.csv").write_text('image,caption\ndeep/b.png,"one, two"\na.JPG,three\n')
    assert [FolderSource(str(folder))[i]["caption"] for i in range(2)] == ["one, two", "three"]


def test_whole_paths_in_a_table_name_the_images_below_it(folder):
    for home in (folder, os.path.join(folder, "deep", "..")):
        rows = [(os.path.join(home, "a.JPG"), "one"), (os.path.join(home, "deep/b.png"), "two")]
        (folder / "captions.csv").write_text("file|text\n" + "".join(f"{a}|{b}\n" for a, b in rows))
        source = FolderSource(str(folder))
        assert captions_of(source) == {"a.JPG": "one", "deep/b.png": "two"}
        assert source.passed_over.examples["image that no table names"] == ["c.webp"]


def test_images_to_condition_on_are_cut_as_their_images(folder):
    rng = np.random.default_rng(0)
    for name in ("a.JPG", "deep/b.png"):
        noise = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
        noise.save((folder / name).with_suffix(".png"))
        noise.save((folder / name).with_suffix(".cond.png"))
    (folder / "a.JPG").unlink()
    spare = ("air.cond.png", "c.cond.PNG", "deep/b.cond.webp")
    for name in spare:
        (folder / name).write_bytes((folder / "a.cond.png").read_bytes())
    source = FolderSource(str(folder))
    assert len(source) == 3
    assert source.passed_over.examples == {"condition image that no image takes": list(spare)}
    config = DataConfig(
        source=f"folder:{folder}", image_size=24, crop="random", flip=True, max_bad_rate=1.0
    )
    stream = batches(config, 8, 0, wants=("image", "cond_image"))
    for _ in range(2):
        batch = next(stream)
        np.testing.assert_array_equal(batch["image"], batch["cond_image"])
    assert stream.bad.by_reason["no .cond image"] > 0  # c.webp has none
    with pytest.raises(UserError, match="'digits' has no images to condition on; give a folder"):
        batches(DataConfig(source="digits", image_size=16), 8, 0, wants=("image", "cond_image"))


def test_hostile_folder_is_skipped_and_counted(folder):
    (folder / "dir.jpg").mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "empty.png").write_bytes(b"")
    (folder / "bytes.png").write_bytes(b"\x00" * 50)
    (folder / "latin.png").write_bytes((folder / "deep/b.png").read_bytes())
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "silent.png").write_bytes((folder / "deep/b.png").read_bytes())
    config = DataConfig(source=f"folder:{folder}", image_size=16, max_bad_rate=1.0)
    found = [
        c
        for batch in batches(config, 2, 0, wants=("image", "caption"), repeat=False)
        for c in batch["caption"]
    ]
    assert sorted(found) == [f"image number {i}" for i in range(3)]
    without = batches(config, 2, 0, wants=("image",), repeat=False)
    assert sum(len(batch["image"]) for batch in without) == 5  # a tokenizer needs no captions


def test_too_many_bad_files_stop_the_run_and_are_named(folder):
    for i in range(30):
        (folder / f"bad{i}.png").write_bytes(b"no")
    config = DataConfig(source=f"folder:{folder}", image_size=16)
    with pytest.raises(UserError, match=r"bad\d+\.png"):
        list(batches(config, 2, 0, wants=("image", "caption"), repeat=False))


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("captions.csv", "image,words\na,b\n", "columns image, words"),
        ("captions.jsonl", "{broken\n", "line 1"),
        ("captions.jsonl", '{"text": "no image"}\n', "names no image"),
        (
            "metadata.csv",
            "file_name,text\na.JPG,a cat, on a mat\n",
            "3 cells for 2 columns in line 2",
        ),
        ("captions.csv", "file\na.JPG,a cat\n", "2 cells for 1 column in line 2"),
        ("captions.json", "3", "no list of objects"),
        ("captions.csv", "file,text\n", "has no rows; write one for each image"),
        ("captions.csv", "\x1f\x8b\x08\n", "has no rows"),
        ("captions.csv", "a\x07b\nc\n", r"has the columns a\\x07b; it needs"),
        ("captions.json", '["a cat"]', "row that names no image"),
        ("captions.json", '{"file": "a.JPG", "caption": "one"}', "of columns .with 'file'. or of"),
        ("captions.json", '{"image": {"0": "a.JPG"}, "text": {"0": "x"}}', "orient='records'"),
        ("captions.json", '{"columns": ["file"], "data": [["a.JPG"]]}', "orient='records'"),
    ],
)
def test_a_broken_table_is_refused(folder, name, text, says):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=says):
        FolderSource(str(folder))


def test_no_folder_and_no_images(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        FolderSource(str(tmp_path / "none"))
    with pytest.raises(UserError, match="holds no images"):
        FolderSource(str(tmp_path))


def captions_of(source):
    found = {}
    for i in range(len(source)):
        try:
            found[source.file(i)[1]] = source.caption(i)
        except BadSample as bad:
            found[bad.name] = bad.reason
    return found


@pytest.mark.parametrize(
    ("name", "says"), [("a.zip", "unpack it"), ("a.tar.gz", "unpack it"), ("a.tar", "webdataset:")]
)
def test_an_archive_is_to_be_unpacked(tmp_path, name, says):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=says):
        FolderSource(str(tmp_path / name))
    with pytest.raises(UserError, match=f"^images=.*{says}"):
        source_spec("images", str(tmp_path / name))


def test_one_list_of_endings_for_captions(folder):
    image = (folder / "a.JPG").read_bytes()
    for name, file, text in (
        ("b.png", "b.TXT", "big letters"),
        ("d.jfif", "d.caption", "another ending"),
        ("e.png", "e.png.txt", "behind the whole name"),
        ("f.jpe", "f.json", json.dumps({"width": 3, "caption": "in JSON"})),
        ("g", "g.txt", "no ending"),
        ("h.webp", "h.json", json.dumps({"prompt": ["first", "second"]})),
        ("i.v2.png", "i.v2.txt", "a dot in the name"),
        ("j.png", "j.json", "{}"),
        ("l.png", "l.txt", "wide \u2603"),
        ("m.png", "m.json", json.dumps({"text": "wide too"})),
        ("n.png", "n.txt", "half"),
        ("k.png", "k.json", "[" * 100_000),
    ):
        (folder / name).write_bytes(image)
        is_wide = name in ("l.png", "m.png", "n.png")
        (folder / file).write_text(text, encoding="utf-16" if is_wide else "utf-8")
    with (folder / "n.txt").open("ab") as half:
        half.write(b"\xd8")
    source = FolderSource(str(folder))
    found = captions_of(source)
    assert source.read_in_part.examples[SEVERAL] == ["h.webp"] and not source.passed_over.total
    assert found == {
        "a.JPG": "image number 0", "b.png": "big letters", "c.webp": "image number 2",
        "d.jfif": "another ending", "deep/b.png": "image number 1",
        "e.png": "behind the whole name",
        "f.jpe": "in JSON", "g": "no ending", "h.webp": "first", "i.v2.png": "a dot in the name",
        "j.png": "no caption", "k.png": "caption is not JSON",
        "l.png": "wide \u2603", "m.png": "wide too", "n.png": "caption is not UTF-8",
    }  # fmt: skip


def test_capital_letters_tell_captions_apart_where_both_are_there(folder):
    image = (folder / "a.JPG").read_bytes()
    for name in ("x.png", "X.png", "y.png", "Y.PNG", "z.png", "Z.png"):
        (folder / name).write_bytes(image)
    for name in ("x.txt", "X.txt", "x.TXT", "y.caption", "Y.json", "Z.txt"):
        (folder / name).write_text(json.dumps({"text": name}) if "json" in name else name)
    source = FolderSource(str(folder))
    assert captions_of(source).items() >= {
        "x.png": "x.txt", "X.png": "X.txt", "y.png": "y.caption", "Y.PNG": "Y.json",
        "z.png": "no caption", "Z.png": "Z.txt",
    }.items()  # fmt: skip
    assert source.passed_over.examples == {"file of .txt that no image takes": ["x.TXT"]}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_are_spelled_in_another_way_are_found(folder, form):
    """As macOS writes letters, with spaces around the cells of a table, and from where it lies."""
    image = (folder / "a.JPG").read_bytes()
    other = "NFD" if form == "NFC" else "NFC"
    names = [unicodedata.normalize(form, name) for name in ("\xe9.png", "d\xe9/\xfc.PNG")]
    (folder / names[1]).parent.mkdir()
    for name in names:
        (folder / name).write_bytes(image)
        text = unicodedata.normalize(other, os.path.basename(name)).lower().replace("png", "txt")
        (folder / name).with_name(text).write_text(name)
    found = captions_of(FolderSource(str(folder)))
    assert [found[name] for name in names] == [unicodedata.normalize(form, n) for n in names]
    rows = [*(unicodedata.normalize(other, name) for name in names), " a.JPG ", "./c.webp"]
    rows += ["deep\\b.png", "none.png"]
    (folder / "captions.csv").write_text(
        "\n".join(["file , text", *(f"{one} , x" for one in rows)])
    )
    source = FolderSource(str(folder))
    there = [*names, "a.JPG", "c.webp", "deep/b.png"]
    assert captions_of(source) == dict.fromkeys(there, "x") | {"none.png ": "no such file"}
    assert not any("image that no table names" in one for one in source.passed_over.by_reason)
    (folder / "a.JPG ").write_bytes(image)  # the exact name, where it is there
    assert FolderSource(str(folder)).without_caption(2)["image"] is not None


def test_leftovers_are_no_data_and_what_is_not_read_is_counted_by_its_ending(folder):
    image = (folder / "a.JPG").read_bytes()
    for name in (
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/a.png",
        ".git/x.png",
        "@eaDir/a.jpg",
    ):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(image)
    for name in ("._a.JPG", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (folder / name).write_bytes(image)
    for name in ("x.heic", "y.HEIC", "deep/z.heic", "README.md", "LICENSE", "film.mp4"):
        (folder / name).write_bytes(b"something")
    (folder / "lonely.txt").write_text("a caption without an image")
    (folder / "linked").symlink_to(folder / "deep")
    source = FolderSource(str(folder))
    assert len(source) == 3
    assert source.passed_over.by_reason == {
        "leftover of another program": 8,
        "file of .heic": 3,
        "file of .md": 1,
        "file without an ending": 1,
        "file of .mp4": 1,
        "file of .txt that no image takes": 1,
        "link to a folder": 1,
    }
    assert source.passed_over.examples["file of .heic"] == ["x.heic", "y.HEIC", "deep/z.heic"]


def test_metadata_of_hugging_face_and_nested_tables(folder):
    """Each table speaks for its folder, as the `datasets` package has it."""
    image = (folder / "a.JPG").read_bytes()
    for name in ("one/train/x.png", "one/y.png", "two/z.png", "two/spare.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    (folder / "one" / "metadata.jsonl").write_text(
        '{"file_name": "train/x.png", "text": "line\u2028one"}\n'
        '{"file_name": "none.png", "text": "x"}\n'
    )
    (folder / "one" / "y.txt").write_text("below a table")
    (folder / "two" / "metadata.csv").write_text("file_name,text\nz.png,second\n..\\a.JPG,first\n")
    (folder / "two" / "metadata.tsv").write_text("file_name\ttext\nz.png\tsecond\n")
    source = FolderSource(str(folder))
    assert captions_of(source) == {
        "one/train/x.png": "line one", "one/none.png": "no such file", "two/z.png": "second",
        "a.JPG": "first", "deep/b.png": "image number 1", "c.webp": "image number 2",
    }  # fmt: skip
    assert len(source) == 6
    assert source.passed_over.by_reason == {
        "image that no table names": 2,
        "file of .txt below a table": 1,
        "table beside metadata.csv": 1,
    }


def test_rows_that_cannot_be_used_are_counted_as_samples(folder):
    rows = ['{"file": "a.JPG", "text": "fine"}', "{", '{"text": "blind"}']
    rows += [
        json.dumps({"file": name, "text": "x"}) for name in ("a\0.png", "\ud800.png", "n" * 300)
    ]
    rows += [
        json.dumps({"file": "a.JPG", "text": text}) for text in ("w" * 200_000, "\ud800", "", None)
    ]
    (folder / "captions.jsonl").write_text("\n".join(rows))
    source = FolderSource(str(folder))
    config = DataConfig(source=f"folder:{folder}", image_size=8, max_bad_rate=1.0)
    stream = batches(config, 4, 0, wants=("image", "caption"), repeat=False)
    assert [batch["caption"] for batch in stream] == [["fine"]]
    assert len(source) == 10 and stream.bad.by_reason == {
        "row that is no JSON object": 1,
        "row that names no image": 1,
        "row with a name that no file can have": 2,
        "unreadable file": 1,
        "row with a cell of more than 131072 characters": 1,
        "caption is not UTF-8": 1,
        "empty caption": 1,
        "no caption": 1,
    }
    assert "captions.jsonl line 2: row that is no JSON object" in stream.bad.names
    with pytest.raises(UserError, match="captions.jsonl line 2"):
        list(batches(DataConfig(source=config.source), 4, 0, wants=("caption",), repeat=False))


def test_pipes_and_devices_are_bad_samples(folder):
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "c.caption")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to("/dev/zero")
    (folder / "pipe.txt").write_text("a pipe")
    (folder / "zero.txt").write_text("a device")
    found = captions_of(FolderSource(str(folder)))
    assert found["pipe.png"] == found["zero.png"] == "not a regular file" and "pipe" not in found
    assert found["a.txt"] == "caption in no regular file of a sane size"
    assert found["c.webp"] == "image number 2"


def test_a_folder_is_named_as_a_shell_names_it(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(FolderSource(f"~/{folder.name}")) == 3


def test_a_folder_without_images_names_what_is_there(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"holds no images \(there are 0.heic: file of .heic; 1.heic"
    ):
        FolderSource(str(tmp_path))


@pytest.mark.parametrize("table", [None, "", "deep"])
@pytest.mark.parametrize(
    "path", ["new.png", "runs/one", "deep/run/samples", ".hidden/run", "deep/.x.png", "../out"]
)
def test_a_folder_knows_which_images_it_would_take(folder, table, path):
    if table is not None:
        (folder / table / "captions.csv").write_text("image,caption\nb.png,one\na.JPG,two\n")
    source = FolderSource(str(folder))
    place = folder / path
    told = source.takes(place)
    assert told == source.takes(type(place)(os.path.relpath(place)))  # however it is written
    file = place if place.suffix else place / "1.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(file)
    assert told == (len(FolderSource(str(folder))) > len(source))


def test_what_lies_behind_a_link_is_not_taken(folder, tmp_path_factory):
    (folder / "runs").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    source = FolderSource(str(folder))
    assert not source.takes(folder / "runs" / "one") and source.takes(folder / "deep")
