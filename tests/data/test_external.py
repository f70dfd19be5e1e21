"""Sets of other packages, made here as tiny ones on disk; TensorFlow is not needed to read them."""

import collections
import pickle
import sys

import numpy as np
import pytest

from t2i_jax.data.caption import SEVERAL
from t2i_jax.data.external import HuggingFaceSource, TfdsSource
from t2i_jax.data.pack import pack
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.data.source import BadSample, open_source
from t2i_jax.errors import UserError
from tests.data.hostile import BAD, CONVERTED, encode, photo

IMAGES = [encode(photo(i)) for i in range(3)]


def tfds_set(folder, features, examples, split="train"):
    """A set as `download_and_prepare` leaves it.

    Without TensorFlow the package reads images but writes none.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(folder / f"tiny-{split}.array_record-00000-of-00001"), "group_size:1"
    )
    for example in examples:
        proto = tf_example_pb2.Example()
        for name, values in example.items():
            feature = proto.features.feature[name]
            for value in values if isinstance(values, list) else [values]:
                (feature.int64_list if isinstance(value, int) else feature.bytes_list).value.append(
                    value
                )
        writer.write(proto.SerializeToString())
    writer.close()
    place = tfds.core.ShardedFileTemplate(
        dataset_name="tiny", data_dir=folder, filetype_suffix="array_record"
    )
    info = tfds.core.SplitInfo(
        name=split, shard_lengths=[len(examples)], num_bytes=1, filename_template=place
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=[info],
        check_data=False,
    )
    return folder


def captioned(tmp_path, examples):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "caption": tfds.features.Text(),
    }
    return tfds_set(tmp_path / "tiny" / "1.0.0", features, examples)


def check(source, captions):
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == len(copy) == 3
    for one in (source, copy):
        for i in (2, 0, 1):
            np.testing.assert_array_equal(one[i]["image"], np.asarray(photo(i)))
            np.testing.assert_array_equal(one.without_caption(i)["image"], np.asarray(photo(i)))
            assert one[i]["caption"] == one.without_image(i)["caption"] == captions[i]
    with pytest.raises(IndexError):
        source[3]


def test_tfds_by_folder_and_by_name(tmp_path, monkeypatch):
    folder = captioned(
        tmp_path, [{"image": p, "caption": f" words {i}".encode()} for i, p in enumerate(IMAGES)]
    )
    check(TfdsSource(str(folder)), ["words 0", "words 1", "words 2"])
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(open_source("tfds:tiny", image_size=16, split="train[:2]")) == 2
    assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
    pack(TfdsSource(str(folder)), tmp_path / "packed", name="tfds:tiny")
    check(
        open_source(f"arrayrecord:{tmp_path / 'packed'}", image_size=16),
        ["words 0", "words 1", "words 2"],
    )


def test_tfds_labels_and_several_captions(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    image = tfds.features.Image(shape=(None, None, 3))
    features = {"label": tfds.features.ClassLabel(names=["sea_star", "dog"]), "image": image}
    rows = [{"image": p, "label": i % 2} for i, p in enumerate(IMAGES)]
    folder = tfds_set(tmp_path / "a/tiny/1.0.0", features, rows)
    check(TfdsSource(str(folder)), ["a photo of sea star", "a photo of dog", "a photo of sea star"])
    features = {
        "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        "image": image,
    }
    rows = [
        {"image": p, "captions/text": [b"first", b"second"], "captions/id": [1, 2]} for p in IMAGES
    ]
    source = TfdsSource(str(tfds_set(tmp_path / "b/tiny/1.0.0", features, rows)))
    check(source, ["first"] * 3)
    assert source.read_in_part.different == {SEVERAL: 3} and not source.passed_over.total


def count_bad(source, **more):
    config = DataConfig(source=source, image_size=8, max_bad_rate=1.0, **more)
    stream = batches(config, 4, 0, wants=("image", "caption"), repeat=False)
    return sum(len(batch["caption"]) for batch in stream), stream.bad.by_reason


REASONS = collections.Counter(reason for *_, reason in BAD.values())


def test_tfds_bad_samples_are_counted(tmp_path):
    rows = [{"image": data, "caption": b"words"} for _, data, _ in (*BAD.values(),)]
    rows += [{"image": data, "caption": b"words"} for _, data in CONVERTED.values()]
    rows += [{"image": IMAGES[0], "caption": text} for text in (b"", b"caf\xe9")] + [
        {"caption": b"blind"}
    ]
    folder = captioned(tmp_path, rows)
    wanted = {**REASONS, "empty caption": 1, "caption is not UTF-8": 1, "unreadable file": 1}
    assert count_bad(f"tfds:{folder}") == (len(CONVERTED), wanted)


def test_tfds_mistakes_are_refused(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = captioned(tmp_path, [{"image": IMAGES[0], "caption": b"words"}])
    blind = tfds_set(
        tmp_path / "b/tiny/1.0.0", {"text": tfds.features.Text()}, [{"text": b"words"}]
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    for name, split, message in (
        (str(folder), "test", "split='test'"),
        (str(blind), "train", "has the columns text and no images"),
        (str(tmp_path), "train", "can't be opened"),
        ("no_such_set_of_pictures", "train", "can't be opened"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            TfdsSource(name, split)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        TfdsSource("coco")


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def hf_rows(datasets, images=IMAGES, **columns):
    rows = {"image": [{"bytes": data, "path": None} for data in images], **columns}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_hugging_face_by_folder(datasets, tmp_path):
    rows = hf_rows(datasets, text=[f"words {i}" for i in range(3)])
    captions = ["words 0", "words 1", "words 2"]
    rows.save_to_disk(tmp_path / "one")
    check(HuggingFaceSource(str(tmp_path / "one")), captions)
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(
        tmp_path / "several"
    )
    check(open_source(f"hf:{tmp_path / 'several'}", image_size=16), captions)
    assert len(HuggingFaceSource(str(tmp_path / "several"), "test")) == 1
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    check(HuggingFaceSource(str(tmp_path / "parquet")), captions)


def test_hugging_face_columns(datasets, tmp_path):
    rows = hf_rows(datasets, captions=[["first", "second"]] * 3, label=[0, 1, 0])
    rows = rows.cast_column("label", datasets.ClassLabel(names=["sea_star", "dog"]))
    rows.save_to_disk(tmp_path / "captions")
    source = HuggingFaceSource(str(tmp_path / "captions"))
    check(source, ["first"] * 3)
    assert source.read_in_part.different == {SEVERAL: 3} and not source.passed_over.total
    rows.remove_columns("captions").save_to_disk(tmp_path / "labels")
    check(
        HuggingFaceSource(str(tmp_path / "labels")),
        ["a photo of sea star", "a photo of dog", "a photo of sea star"],
    )
    # no column is of the type Image
    plain = datasets.Dataset.from_dict({"png": IMAGES, "prompt": ["words"] * 3})
    plain.save_to_disk(tmp_path / "plain")
    check(HuggingFaceSource(str(tmp_path / "plain")), ["words"] * 3)


def test_hugging_face_columns_of_the_hubs_archives(datasets, tmp_path):
    """Members of archives are columns by their endings."""
    rows = {"__key__": ["a", "b", "c"], "jpg": IMAGES, "cls": [0, 1, 2]}
    for name, cells in {"txt": ["words"] * 3, "json": [{"caption": "words"}] * 3}.items():
        datasets.Dataset.from_dict({**rows, name: cells}).save_to_disk(tmp_path / name)
        check(HuggingFaceSource(str(tmp_path / name)), ["words"] * 3)


@pytest.mark.parametrize(
    "columns, told",
    [
        ({"label": [0, 1, 0]}, "image, label"),
        ({"text": [{"en": "words", "de": "Worte"}] * 3}, "image, text.en, text.de"),
        ({"caption": [7, 8, 9]}, "image, caption"),
    ],
)
def test_hugging_face_columns_without_a_caption_are_named(datasets, tmp_path, columns, told):
    hf_rows(datasets, **columns).save_to_disk(tmp_path / "set")
    source = HuggingFaceSource(str(tmp_path / "set"))
    for i in range(3):
        with pytest.raises(BadSample) as refused:
            source.caption(i)
        assert refused.value.reason == f"no caption among the columns {told}"


def test_hugging_face_images_in_files_of_their_own(datasets, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    rows = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / "a.png"), str(tmp_path / "none.png")]}
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: rows.cast_column("image", datasets.Image())
    )
    source = HuggingFaceSource("me/set")
    assert source.without_caption(0)["image"].shape == (16, 20, 3)
    for index, read, reason in (
        (0, "__getitem__", "no caption"),
        (1, "without_caption", "unreadable file"),
    ):
        with pytest.raises(BadSample, match=reason):
            getattr(source, read)(index)


def test_hugging_face_bad_samples_are_counted(datasets, tmp_path):
    images = (
        [data for _, data, _ in BAD.values()]
        + [data for _, data in CONVERTED.values()]
        + [IMAGES[0]] * 2
    )
    rows = hf_rows(datasets, images, caption=["words"] * (len(images) - 2) + ["", None])
    rows.save_to_disk(tmp_path / "set")
    wanted = {**REASONS, "empty caption": 1, "no caption": 1}
    assert count_bad(f"hf:{tmp_path / 'set'}") == (len(CONVERTED), wanted)


def test_hugging_face_files_that_would_kill_the_process_are_refused(datasets, tmp_path):
    """Arrow follows offsets without looking; a caption in another code is left to be counted."""
    import pyarrow

    def texts(offsets, data):
        buffers = [None, pyarrow.py_buffer(np.array(offsets, np.int32)), pyarrow.py_buffer(data)]
        return pyarrow.Array.from_buffers(pyarrow.string(), len(offsets) - 1, buffers)

    rows = hf_rows(datasets, text=["words"] * 3)
    rows.save_to_disk(tmp_path / "set")
    path = next((tmp_path / "set").glob("*.arrow"))
    beyond, latin = (
        texts([0, 5, 10**9, 15], b"words" * 3),
        texts([0, 5, 9, 14], b"wordscaf\xe9words"),
    )
    for column, refused in ((beyond, True), (latin, False)):
        table = rows.data.table.set_column(1, "text", column)
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
        if refused:
            with pytest.raises(UserError, match="can't be opened"):
                HuggingFaceSource(str(tmp_path / "set"))
    source = HuggingFaceSource(str(tmp_path / "set"))
    assert source[0]["caption"] == source[2]["caption"] == "words"
    with pytest.raises(BadSample):
        source[1]


def test_hugging_face_mistakes_are_refused(datasets, tmp_path, monkeypatch):
    hf_rows(datasets, text=["words"] * 3).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"words": [1]})}).save_to_disk(
        tmp_path / "blind"
    )
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "state.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for name, split, message in (
        (str(tmp_path / "blind"), "test", "no split 'test', but train"),
        (str(tmp_path / "blind"), "train", "has the columns words and no images"),
        (str(tmp_path / "damaged"), "train", "can't be opened"),
        (str(tmp_path / "empty"), "train", "can't be opened"),
        ("nobody/no-such-set:config", "train", "can't be opened"),  # the tests are offline
    ):
        with pytest.raises(UserError, match=message) as caught:
            HuggingFaceSource(name, split)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        HuggingFaceSource("me/set")
