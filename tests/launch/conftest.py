"""One folder of stand-ins per test."""

import pytest

from tests.launch.stand_ins import StandIns


@pytest.fixture
def stand_ins(tmp_path):
    """Programs of clouds and clusters that only pretend.

    What they are told to do is in the test.
    """
    return StandIns(tmp_path)
