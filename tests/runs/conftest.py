"""Folders of images and their results, for the tests of `t2i evaluate`, whose files put toys in the
place of the networks.
"""

import pytest

from tests.runs.scoring_toys import ALL, evaluate, write_images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Generated and real images."""
    home = tmp_path_factory.mktemp("images")
    return write_images(home / "made", 45), write_images(home / "real", 60, seed=1)


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory):
    """The folder of all metrics, and what was printed."""
    out = tmp_path_factory.mktemp("out") / "all"
    return out, evaluate(folders, out, "--metrics", ALL)
