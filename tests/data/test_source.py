"""Opening sources, and counting what cannot be used."""

import pickle
import sys
import threading
import types

import pytest

from t2i_jax.data.source import BadCounter, BadSample, open_source
from t2i_jax.errors import UserError


def test_embedded_sets_are_shared():
    first = open_source("digits", image_size=16, split="heldout")
    assert len(first) == 360 and first is open_source("digits", image_size=16, split="heldout")
    assert len(open_source("shapes", image_size=16)) == 20_000
    assert open_source("shapes", image_size=16, seed=1).seed == 1


@pytest.mark.parametrize("spec,module,name,wanted", [
    ("folder:C:/photos", "folder", "FolderSource", ("C:/photos",)),
    ("webdataset:a/*.tar", "webdataset", "WebDatasetSource", ("a/*.tar",)),
    ("arrayrecord:packed", "arrayrecord", "PackedSource", ("packed",)),
    ("tfds:coco", "external", "TfdsSource", ("coco", "train")),
    ("hf:me/set", "external", "HuggingFaceSource", ("me/set", "train")),
])  # fmt: skip
def test_the_kind_says_who_reads(monkeypatch, spec, module, name, wanted):
    reader = types.ModuleType(module)
    setattr(reader, name, lambda *arguments: arguments)
    monkeypatch.setitem(sys.modules, f"t2i_jax.data.{module}", reader)
    assert open_source(spec, image_size=16) == wanted


@pytest.mark.parametrize("spec,message", [
    ("shape", "did you mean 'shapes'"),
    ("foldr:photos", "did you mean 'folder'"),
    ("folder", "write data.source=folder:PATH"),
    ("tfds:", "write data.source=tfds:NAME"),
    ("shapes:32", "write data.source=shapes"),
])  # fmt: skip
def test_mistakes_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec, image_size=16)


def test_bad_samples_are_counted_from_many_threads():
    counter = BadCounter()

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
    counter = BadCounter()
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
