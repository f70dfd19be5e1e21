"""Sets that other packages keep: TensorFlow Datasets and Hugging Face datasets, read without
TensorFlow or PyTorch.
"""

from __future__ import annotations

import abc
import importlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from t2i_jax.data.caption import KEYS, SEVERAL, clean_caption, first_text, has_several
from t2i_jax.data.image_file import ImageFiles, decode, file_bytes
from t2i_jax.data.source import BadSample, Record
from t2i_jax.errors import UserError

# names of columns of images whose type does not say so
_IMAGES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
_CAPTIONS = (*KEYS, "txt", "json")  # the last two as the hub names members of archives
_OF_LABEL = "a photo of {}"


class _Rows(ImageFiles):
    """Sources of rows, each a mapping of columns.

    The caption is that of the first of the columns caption, captions, text, texts, prompt,
    description, sentence(s), txt, json; of several captions, the first. Without such a column it is
    "a photo of LABEL", from a column of classes. Where no column holds captions, the reason of
    these bad samples names the columns that are there.

    Attributes:
      columns: names of the image's and of the caption's column; None where there is no caption.
      classes: names of the classes, where the caption comes from a label.
    """

    def __init__(
        self,
        name: str,
        rows: Any,
        columns: tuple[str, str | None],
        classes: list[str] | None,
        held_in: tuple[Iterable[str], str],
        features: Mapping[str, Any],
    ):
        self.name, self._rows, self.columns, self.classes = name, rows, columns, classes
        there = ", ".join(_names({**features, columns[0]: None}))
        self._lacking = f"no caption among the columns {there}"
        self._files, self._version = tuple(map(pathlib.Path, held_in[0])), held_in[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._row(index, self._rows)  # once for both
        return {
            "image": decode(*self._image(row, index), self.channels),
            "caption": self._words(row, index),
        }

    def file(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image file and the record's name; or `BadSample`."""
        return self._image(self._row(index, self._rows), index)

    @property
    def image_files(self) -> Iterable[pathlib.Path]:
        """The files that hold the rows; image files that a row only names are not among them."""
        return self._files

    @property
    def version(self) -> str:
        """The version of the set, as its package tells it."""
        return self._version

    def image_name(self, index: int) -> None:
        """None: rows have numbers and no names."""

    def caption(self, index: int) -> str:
        """The caption; or `BadSample`."""
        return self._words(self._row(index, self._captions()), index)

    @abc.abstractmethod
    def _captions(self) -> Any:
        """The rows, without images where that is cheaper."""

    def _row(self, index, rows):
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return rows[index]
        except Exception:  # whatever the package makes of a damaged file
            raise BadSample("damaged record", self._where(index)) from None

    def _image(self, row, index):
        value = row[self.columns[0]]
        if isinstance(value, Mapping):
            value = _read(value.get("path")) if value.get("bytes") is None else value["bytes"]
        if not isinstance(value, bytes):
            raise BadSample("unreadable file", self._where(index))
        return value, self._where(index)

    def _words(self, row, index):
        value = None if self.columns[1] is None else row[self.columns[1]]
        if self.classes is not None:
            value = _class_name(self.classes, value)
        if has_several(value):
            self.read_in_part.note(SEVERAL, self._where(index))
        caption = first_text(value)
        empty = () if isinstance(value, Mapping) else (type(None),)  # of names, none is known
        if self.columns[1] is None or not isinstance(caption, (str, bytes, *empty)):
            raise BadSample(self._lacking, self._where(index))
        return clean_caption(caption, self._where(index))

    def _where(self, index):
        return f"{self.name}[{index}]"


class TfdsSource(_Rows):
    """Random access to a set of TensorFlow Datasets that was prepared as ArrayRecord.

    Args:
      name: a name such as "coco_captions" or "imagenet_v2/topimages:3.0.0", or the folder of a
        prepared set. A name that is not prepared yet is downloaded and prepared, for which the
        package itself needs TensorFlow.
      split: "train", "test[:10%]" and so on.

    Raises:
      UserError: the package is not installed, no such set, split or image, or a format without
        random access.
    """

    def __init__(self, name: str, split: str = "train"):
        tfds = _package("tfds", name, "tensorflow_datasets", "tensorflow-datasets")
        try:
            if pathlib.Path(name).is_dir():
                builder = tfds.builder_from_directory(name)
            else:
                builder = tfds.builder(name, file_format="array_record")
                builder.download_and_prepare()
            features = dict(builder.info.features.items())
            image = _chosen(features, lambda one: isinstance(one, tfds.features.Image), ("image",))
            rows = image and builder.as_data_source(
                split=split, decoders={image: tfds.decode.SkipDecoding()}
            )
            held_in = builder.info.splits[split].filepaths, builder.info.full_name
        # of many kinds, for names, networks, formats, and TensorFlow that is not there
        except Exception as error:
            remedy = "prepare it with `tfds build --file_format=array_record`"
            raise _refusal("tfds", name, split, error, remedy) from None

        def is_label(one):
            return isinstance(one, tfds.features.ClassLabel)

        columns, classes = _columns("tfds", name, features, image, is_label)
        super().__init__(name, rows, columns, classes, held_in, features)

    def _captions(self):
        return self._rows


class HuggingFaceSource(_Rows):
    """Random access to a set of the `datasets` package.

    Args:
      name: a name on the hub, "lambdalabs/naruto-blip-captions", with ":CONFIG" behind it where it
        has several; or a folder that `save_to_disk` wrote, or one with parquet files.
      split: "train", "test[:10%]" and so on; a folder that holds one split has no others.

    Raises:
      UserError: the package is not installed, no such set or split within reach, or no images in
        it.
    """

    def __init__(self, name: str, split: str = "train"):
        datasets = _package("hf", name, "datasets", "datasets")
        try:
            rows = _opened(datasets, name, split)
            _check_offsets(rows.data.table)
            features, held_in = dict(rows.features), _held_in(rows)
            image = _chosen(features, lambda one: isinstance(one, datasets.Image), _IMAGES)
            image = image or next((column for column in _IMAGES if column in features), None)
            if image is not None and isinstance(features[image], datasets.Image):
                rows = rows.cast_column(image, datasets.Image(decode=False))
        except Exception as error:  # of many kinds, for names, networks and files
            raise _refusal(
                "hf", name, split, error, "give a name or a folder that `datasets` can load"
            ) from None
        columns, classes = _columns(
            "hf", name, features, image, lambda one: isinstance(one, datasets.ClassLabel)
        )
        super().__init__(name, rows.with_format(None), columns, classes, held_in, features)
        self._text = self._rows.select_columns([columns[1]]) if columns[1] else None

    def _captions(self):
        return self._rows if self._text is None else self._text


def _opened(datasets, name, split):
    folder = pathlib.Path(name)
    if (folder / "state.json").is_file():  # one split, as save_to_disk wrote it
        return datasets.load_from_disk(name)
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(name)
        if split not in splits:
            raise ValueError(f"it has no split {split!r}, but {', '.join(splits)}")
        return splits[split]
    repository, colon, config = (name, "", "") if folder.is_dir() else name.partition(":")
    return datasets.load_dataset(repository, config if colon else None, split=split)


def _held_in(rows):
    """The Arrow files, and the fingerprint that the package gives a set: it changes with the
    revision on the hub, with names and times of the files that a set was made from, and with the
    split.
    """
    return [one["filename"] for one in rows.cache_files], str(getattr(rows, "_fingerprint", ""))


def _check_offsets(table):
    """Refuses an Arrow file in which texts and bytes do not lie where it says: reading it would
    kill the process.
    """
    import pyarrow

    for column in table.columns:
        for chunk in column.chunks:
            try:
                chunk.validate(full=True)
            except pyarrow.ArrowInvalid as error:
                if "UTF8" not in str(error):  # a text in another code is one bad sample
                    raise


def _package(kind, name, module, pip):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"data.source='{kind}:{name}' needs a package that is missing; pip install {pip}."
        ) from None


def _refusal(kind, name, split, error, remedy):
    said = next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
    return UserError(
        f"data.source='{kind}:{name}' can't be opened with split={split!r} ({said[:200]}); "
        f"{remedy}."
    )


def _columns(kind, name, features, image, is_label):
    """(image, caption) and the names of the classes where the caption is a label."""
    if image is None:
        raise UserError(
            f"data.source='{kind}:{name}' has the columns {', '.join(features)} and no images in "
            "them; name a set with images."
        )
    caption = next(
        (one for one in _CAPTIONS if one in features and not is_label(features[one])), None
    )
    if caption is not None:
        return (image, caption), None
    label = _chosen(features, is_label, ("label",))
    return (image, label), list(features[label].names) if label else None


def _names(features):
    """Names of columns, those inside of others too: image, text.en, text.de."""
    for name, feature in features.items():
        inside = feature if isinstance(feature, dict) else {}
        yield from (f"{name}.{one}" for one in _names(inside)) if inside else (name,)


def _chosen(features, fits, preferred):
    """The column that fits: one of the preferred names, else the first."""
    found = [name for name, one in features.items() if fits(one)]
    return next((name for name in preferred if name in found), found[0] if found else None)


def _class_name(classes, label):
    known = isinstance(label, (int, np.integer)) and 0 <= label < len(classes)
    return _OF_LABEL.format(classes[label].replace("_", " ")) if known else None


def _read(path):
    try:
        return file_bytes(os.fspath(path), "")
    except (BadSample, TypeError):
        return None
