"""Opening sources, and counting what cannot be used."""

import pickle
import sys
import tarfile
import threading
import types

import numpy as np
import pytest

from t2i_jax.data.ledger import Ledger, printable, together
from t2i_jax.data.pack import pack
from t2i_jax.data.source import BadSample, Source, open_source
from t2i_jax.errors import UserError
from tests.runs.scoring_toys import write_images


def test_embedded_sets_are_shared():
    first = open_source("digits", image_size=16, split="heldout")
    assert len(first) == 360 and first is open_source("digits", image_size=16, split="heldout")
    assert len(open_source("shapes", image_size=16)) == 20_000
    assert open_source("shapes", image_size=16, seed=1).seed == 1


class Opened(Source):
    """A source that remembers what it was opened with."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": np.full((4, 6, 3), index, np.uint8), "caption": str(index)}


def test_what_a_source_does_not_say_has_a_default():
    source = Opened()
    assert source.without_image(3) == {"image": None, "caption": "3"} and source.caption(2) == "2"
    assert source.without_caption(3)["caption"] is None and source.file(0) is None
    assert source.stored == {} and not source.has_cond_images and not source.passed_over.total
    gray = source.in_channels(1)
    assert (gray.channels, source.channels) == (1, 3)
    with pytest.raises(BadSample, match="no image to condition on"):
        source.cond_image(0)


@pytest.mark.parametrize("spec,module,name,wanted", [
    ("folder:C:/photos", "folder", "FolderSource", ("C:/photos",)),
    ("webdataset:a/*.tar", "webdataset", "WebDatasetSource", ("a/*.tar",)),
    ("arrayrecord:packed", "arrayrecord", "PackedSource", ("packed",)),
    ("tfds:coco", "external", "TfdsSource", ("coco", "train")),
    ("hf:me/set", "external", "HuggingFaceSource", ("me/set", "train")),
])  # fmt: skip
def test_the_kind_says_who_reads(monkeypatch, spec, module, name, wanted):
    reader = types.ModuleType(module)
    setattr(reader, name, Opened)
    monkeypatch.setitem(sys.modules, f"t2i_jax.data.{module}", reader)
    assert open_source(spec, image_size=16).arguments == wanted
    assert open_source(spec, image_size=16, channels=4).channels == 4


@pytest.mark.parametrize("spec,message", [
    ("shape", "did you mean 'shapes'"),
    ("foldr:photos", "did you mean 'folder'"),
    ("folder", "write data.source=folder:PATH"),
    ("tfds:", "write data.source=tfds:NAME"),
    ("shapes:32", "write data.source=shapes"),
    ("/", "write folder:/ for a folder of images"),
])  # fmt: skip
def test_mistakes_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec, image_size=16)


def test_bad_samples_are_counted_from_many_threads():
    counter = Ledger()

    def add():
        for i in range(500):
            counter.add(BadSample("no caption" if i % 2 else "not an image", f"{i}.png"))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.by_reason == {"no caption": 1000, "not an image": 1000} and counter.total == 2000
    assert len(counter.names) == len(set(counter.names)) == 5


def test_the_rate_is_looked_at_when_enough_were_seen():
    counter = Ledger()
    counter.check(10_000, 0.0)  # nothing is wrong
    counter.add(BadSample("not an image", "b.png"))
    counter.check(19, 0.01)
    counter.check(20, 0.05)  # one of twenty is no more than that
    with pytest.raises(
        UserError, match=r"1 of 20 samples cannot be used \(b.png: not an image\).*max_bad_rate"
    ):
        counter.check(20, 0.04)
    with pytest.raises(UserError, match="1 of 3 samples"):
        counter.check(3, 0.05, done=True)


def test_a_bad_sample_travels_between_processes():
    bad = pickle.loads(pickle.dumps(BadSample("no caption", "a.png")))
    assert (bad.reason, bad.name, str(bad)) == ("no caption", "a.png", "a.png: no caption")


def test_a_ledger_tells_what_came_again_apart_and_names_the_first():
    ledger = Ledger()
    for _ in range(3):
        for i in range(5):
            ledger.add(BadSample("not an image", f"{i}.png"))
    ledger.note("files of .heic", "a.heic", 40)
    assert ledger.by_reason["not an image"] == 15 and ledger.different["not an image"] == 5
    assert ledger.lines("left out") == [
        "left out: 45",
        "  files of .heic: 40 (a.heic, ...)",
        "  not an image: 5 (0.png, 1.png, 2.png, ...)",
    ]
    copy = pickle.loads(pickle.dumps(ledger))
    assert copy.metrics("x/") == {"x/not an image": 5.0, "x/files of .heic": 40.0}
    assert together([copy.metrics("x/"), {"x/other": 1.0}])["x/other"] == 1
    assert Ledger().lines("left out") == []


def test_names_can_be_printed_whatever_a_file_is_called():
    for name in ("a\nb\x1b[31m.png", "\udcff.png", "a" * 5000, "\u202e.png", "\0"):
        assert printable(name).isprintable() and len(printable(name)) <= 200
    assert printable("\xe9 \u732b.png") == "\xe9 \u732b.png"


def test_names_of_images_are_those_of_their_files(tmp_path):
    home = write_images(tmp_path / "images", 3)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for path in sorted(home.iterdir()):
            file.add(path, path.name)
    folder = open_source(f"folder:{home}", image_size=8)
    pack(folder, tmp_path / "packed", name="images")
    for spec, first in (
        (f"folder:{home}", "000.png"),
        (f"webdataset:{tmp_path / 'a.tar'}", "a.tar/000.png"),
        (f"arrayrecord:{tmp_path / 'packed'}", None),
    ):
        source = open_source(spec, image_size=8)
        names = [source.image_name(row) for row in range(3)]
        assert names == [source.file(row)[1] for row in range(3)] and len(set(names)) == 3
        assert first in (None, names[0])
    assert open_source("digits", image_size=8).image_name(0) is None
