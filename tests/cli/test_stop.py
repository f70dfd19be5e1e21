"""`t2i train` stopped while it compiles, as a process: the compiler can't be broken off, and nobody
waits for it.
"""

import re
import signal
import subprocess
import time

import pytest

from tests.e2e.command import t2i_command

# the toy, whose step is compiled for a minute
_RECIPE = """
import time, jax
from tests.toy_system.recipe import get_config as toy
before = jax.stages.Lowered.compile
def slowly(self, **options):
    time.sleep(60 * ("jit_train_step" in self.as_text()[:200]))
    return before(self, **options)
jax.stages.Lowered.compile = slowly
def get_config():
    return toy().parts["mean"]
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_with_its_status_and_one_sentence(tmp_path, number):
    recipe, told = tmp_path / "slow.py", tmp_path / "stderr"
    recipe.write_text(_RECIPE)
    with told.open("w") as stderr:
        process = subprocess.Popen(
            t2i_command("train", recipe, "--workdir", tmp_path / "run"), stderr=stderr
        )
        end = time.monotonic() + 120
        while "compiling: " not in told.read_text() and time.monotonic() < end:
            assert process.poll() is None, told.read_text()[-2000:]
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=45) == 75
    said = told.read_text().splitlines()
    assert re.fullmatch("t2i: stopped while compiling, no step was made; start .*", said[-1]), said
    assert not any("Traceback" in line for line in said)
