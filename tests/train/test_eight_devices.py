"""Eight simulated devices give what one gives: data parallel, FSDP, FSDP with tensor parallelism.

See eight.py.
"""

import pathlib
import subprocess
import sys

import pytest

from .eight import CASES

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_give_what_one_gives(case):
    command = [sys.executable, "-m", "tests.train.eight", case]
    done = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
