"""Eight simulated devices give what one gives: data parallel, FSDP, FSDP with tensor parallelism.

See eight.py.
"""

import json
import pathlib
import subprocess
import sys

import pytest

from .eight import CASES

# other cases compare these presets on networks that compile faster, and Parti on other meshes
_LONG = {"parti_without_tensor"}
_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outcomes(request):
    """By case that is asked for, its traceback or None, and what was said besides: one process runs
    them all, since a start is as long as a small case.
    """
    here = [item for item in request.session.items if item.path == request.path]
    asked = [item.callspec.params["case"] for item in here]
    command = [sys.executable, "-m", "tests.train.eight", *asked]
    done = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=1800
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return dict(map(json.loads, lines)), done.stderr[-3000:]


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.long] if name in _LONG else []) for name in CASES],
)
def test_eight_devices_give_what_one_gives(case, outcomes):
    ended, said = outcomes
    assert case in ended, f"the process ended before this case did: {said}"
    assert ended[case] is None, ended[case]
