"""Class labels: which class a caption names, one embedding for each, and what is no class."""

import pathlib

import jax
import numpy as np
import pytest

from t2i_jax import config, sharding
from t2i_jax.data.digits import Digits
from t2i_jax.errors import UserError
from t2i_jax.runs.recipe import load_recipe
from t2i_jax.text.classes import ClassLabels

_LABELS = ClassLabels(
    ("tench, Tinca tinca", "tiger", "tiger shark", "seven, 7", "crane (bird)"), dim=4
)
_SHARED = ClassLabels(
    (
        "panther, jaguar", "cougar, panther", "maillot", "maillot, tank suit", "wagon, van",
        "wagon,cab", "tiger", "tiger moth, moth", "tiger moth, ermine",
    ),
    dim=4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("tench", 0),
        ("A photo of a TINCA  TINCA.", 0),
        ("tench, Tinca tinca", 0),  # both names of one class
        ("a tiger", 1),
        ("a tiger shark in the sea", 2),
        ("the digit 7", 3),
        ("crane (bird)", 4),
    ],
)
def test_a_caption_names_its_class(caption, number):
    ids, mask = _LABELS.tokenizer()([caption], 1)
    assert ids.tolist() == [[number]] and mask.all() and ids.dtype == np.int32


def test_the_classes_of_a_recipe_are_the_labels_of_its_data():
    """However a caption of the digits is worded, and as one writes it who samples."""
    root = pathlib.Path(__file__).resolve().parents[2]
    numbers = load_recipe(root / "configs" / "muse" / "digits.py").task.text.tokenizer()
    for data in (Digits(8), Digits(8, "heldout")):
        captions = [data.without_image(i)["caption"] for i in range(len(data))]
        np.testing.assert_array_equal(numbers(captions, 1)[0][:, 0], data.labels)
    assert numbers(["three", "a three", "3"], 1)[0].tolist() == [[3]] * 3


@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("Cougar, panther", 1),
        ("a panther, a jaguar", 0),
        ("maillot", 2),  # all names of a class
        ("maillot, tank suit", 3),
        ("a cab, a wagon", 5),
        ("a panther", "names 'panther, jaguar' and 'cougar, panther'; name one class"),
        ("a maillot", "names 'maillot' and 'maillot, tank suit'; name one class"),
        ("a tiger moth", "names 'tiger moth, moth' and 'tiger moth, ermine'; name one class"),
    ],
)
def test_a_name_of_two_classes_tells_neither(caption, number):
    if isinstance(number, int):
        assert _SHARED.tokenizer()([caption], 1)[0].tolist() == [[number]]
        return
    with pytest.raises(UserError, match=number):
        _SHARED.encode(None, caption, "prompts")


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ("a dog", r"caption 'a dog' names none of the 5 classes; name one class \('tench, Tinca"),
        ("tigers", "names none"),
        ("77", "names none"),
        ("a tench and a tiger", "names 'tench, Tinca tinca' and 'tiger'; name one class"),
    ],
)
def test_what_is_no_class_gets_one_sentence(caption, says):
    with pytest.raises(UserError, match=says):
        _LABELS.encode(None, ["tench", caption], "prompts")
    with pytest.raises(UserError, match=says):
        _LABELS.check_captions(iter(["tench", caption]))


def test_all_captions_of_data_are_looked_at_and_the_first_that_are_no_classes_listed():
    captions = ["tench", ""] * 2000 + ["a dog", "tiger", "a dog", "a tench and a tiger"]
    says = r"^caption 'a dog' names none.*; caption 'a tench and a tiger' names.* and 'tiger'; name"
    with pytest.raises(UserError, match=says) as error:
        _LABELS.check_captions(captions)
    assert str(error.value).count("'a dog'") == 1
    with pytest.raises(UserError, match="'dog 4' names none of the 5 classes; name one class"):
        _LABELS.check_captions(f"dog {number}" for number in range(9))
    _LABELS.check_captions(captions[:4000])


def test_an_embedding_per_class_and_none_for_an_empty_caption():
    params = sharding.unbox(_LABELS.init(jax.random.key(0)))
    made = _LABELS.encode(None, ["tench", "", "tiger"], "prompts")
    assert made["text_mask"].tolist() == [[True], [False], [True]]
    embeds = _LABELS.embed(params, made["text"], made["text_mask"])
    assert embeds.shape == (3, 1, 4)
    np.testing.assert_array_equal(embeds[2, 0], params["embedding"][1])
    assert _LABELS.spec(3)["text"].shape == (3, 1) and _LABELS.empty(2) == ["", ""]
    assert config.from_dict(config.to_dict(_LABELS), {"ClassLabels": ClassLabels}) == _LABELS


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "holds no class"),
        ("cat", "names='cat' holds no class"),
        (("cat", "!"), r"names\[1\]='!' has no word"),
        (
            ("crane", "dog", "Crane", "cat", "cat"),
            r"names\[0\]='crane'; names\[2\]='Crane'; names\[3\]='cat'; names\[4\]='cat' have",
        ),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(names, says):
    with pytest.raises(UserError, match=says):
        ClassLabels(names, dim=4)
