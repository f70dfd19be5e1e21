"""The metrics made from a judge's verdicts."""

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.alignment import Judge, alignment, task_table


class Bright(Judge):
    """An image is right when it is as bright as the caption's number says."""

    def judge(self, images_NHWC, captions):
        return images_NHWC[:, 0, 0, 0] == [int(caption) for caption in captions]


class BrightInParts(Bright):
    def parts(self, images_NHWC, captions):
        return {
            "brightness": self.judge(images_NHWC, captions),
            "presence": np.ones(len(captions), bool),
        }


IMAGES = np.array([1, 2, 3, 2], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
CAPTIONS = ["1", "2", "2", "2"]


def test_fraction_and_detail():
    found = alignment(IMAGES, CAPTIONS, Bright())
    assert found["alignment"] == 0.75 and found["stderr"] == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    assert found["right"] == [True, True, False, True] and found["parts"] == {}
    assert found["captions"] == [
        {"caption": "1", "right": 1, "of": 1},
        {"caption": "2", "right": 2, "of": 3},
    ]


def test_parts_where_the_judge_has_them():
    assert alignment(IMAGES, CAPTIONS, BrightInParts())["parts"] == {
        "brightness": 0.75,
        "presence": 1.0,
    }


class BrightInTasks(Bright):
    def tasks(self, captions):
        return ["dark" if caption == "1" else "light" for caption in captions]


def test_tasks_where_the_judge_knows_them():
    found = alignment(IMAGES, CAPTIONS, BrightInTasks())
    assert {name: (one["right"], one["of"]) for name, one in found["tasks"].items()} == {
        "dark": (1, 1),
        "light": (2, 3),
    }
    assert found["parts"] == {
        "task/dark": 1.0,
        "task/light": pytest.approx(2 / 3),
        "tasks": pytest.approx(5 / 6),  # of tasks, not of images
    }
    lines = task_table(found["tasks"]).splitlines()
    assert lines[3].startswith("| light | 2 | 3 | 0.667 | 0.2") and "0.833" in lines[-1]


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="4 images and 3 captions"):
        alignment(IMAGES, CAPTIONS[:3], Bright())
    with pytest.raises(UserError, match="float32"):
        alignment(IMAGES.astype(np.float32), CAPTIONS, Bright())
    with pytest.raises(UserError, match=r"uint8\(0, 2, 2, 3\)"):
        alignment(IMAGES[:0], [], Bright())
