"""The handwritten digits: scans, captions, splits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from t2i_jax.data import digits
from t2i_jax.data.digits import WORDS, Digits
from t2i_jax.errors import UserError


def test_images_are_the_scans_dark_on_white():
    scans = load_digits().images
    data = Digits(8)
    kept = [i for i in range(len(scans)) if i % 5]
    assert len(data) == len(kept) == 1437 and len(Digits(8, "heldout")) == 360
    for i in (0, 3, 4, 1436):
        image = data[i]["image"]
        assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
        np.testing.assert_allclose(
            (255 - image[..., 0].astype(float)) * 16 / 255, scans[kept[i]], atol=0.04
        )
    np.testing.assert_array_equal(
        Digits(8, "heldout")[1]["image"][..., 0], np.rint(255 - scans[5] * 255 / 16)
    )


def test_where_the_file_is_not_scikit_learn_is_asked(monkeypatch):
    there = digits._file()
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    for ours, theirs in zip(there, digits._file(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_enlarged_images_keep_their_ink():
    small, large = Digits(8), Digits(32)
    for i in range(20):
        assert large[i]["image"].shape == (32, 32, 3)
        assert large[i]["image"].mean() == pytest.approx(small[i]["image"].mean(), abs=6)


def test_captions_name_the_digit_in_several_ways():
    data, again, other = Digits(8), Digits(8), Digits(8, seed=1)
    captions = [data[i]["caption"] for i in range(len(data))]
    for caption, label in zip(captions, data.labels):
        assert WORDS[label] in caption.split() or str(label) in caption.split()
        assert not any(word in caption.split() for i, word in enumerate(WORDS) if i != label)
    assert len(set(captions)) == 50
    assert [data.without_image(i)["caption"] for i in range(9)] == captions[:9]
    assert captions == [again[i]["caption"] for i in range(len(data))]
    assert captions != [other[i]["caption"] for i in range(len(data))]


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="image_size=4"):
        Digits(4)
    with pytest.raises(UserError, match="split='test'"):
        Digits(split="test")
    with pytest.raises(IndexError):
        Digits(8, "heldout")[360]
