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
    ("caption", "says"),
    [
        ("a dog", r"caption 'a dog' names none of the 5 classes; name one of them \('tench, Tinca"),
        ("tigers", "names none"),
        ("77", "names none"),
        ("a tench and a tiger", "names 'tench, Tinca tinca' and 'tiger'; name one class"),
    ],
)
def test_what_is_no_class_gets_one_sentence(caption, says):
    with pytest.raises(UserError, match=says):
        _LABELS.encode(None, ["tench", caption], "prompts")
    with pytest.raises(UserError, match=says):
        _LABELS.prepare("nowhere", lambda: iter(["tench", caption]))


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
        (("crane", "dog", "Crane"), r"names\[2\]='Crane' has a name of names\[0\]='crane'"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(names, says):
    with pytest.raises(UserError, match=says):
        ClassLabels(names, dim=4)
