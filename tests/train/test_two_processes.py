"""Two processes train one model: a SIGTERM to one stops both after one step, and the result is that of one process."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from t2i_jax.train.checkpoint import load_params
from t2i_jax.train.loop import fit

from .toy import ToyBatches, ToyTask
from .two import CONFIG

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _both(workdir, end):
    """Exit statuses of the two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.train.two"]
    settings = {"cwd": _ROOT, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, str(rank), str(port), str(workdir), end], **settings) for rank in range(2)]
    try:
        said = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


def test_two_processes_stop_together_and_train_what_one_trains(tmp_path):
    statuses, said = _both(tmp_path / "two", "stop")
    assert statuses == [75, 75], said
    finished = [int(path.name) for path in (tmp_path / "two" / "checkpoints").iterdir() if path.name.isdigit()]
    assert 2 < max(finished) < CONFIG.steps
    statuses, said = _both(tmp_path / "two", "go")
    assert statuses == [0, 0], said
    whole = fit(ToyTask(), ToyBatches(), CONFIG, tmp_path / "one")
    # Sums over two processes are rounded differently, and Adam repeats that in every step.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, load_params(tmp_path / "two")[1], whole.params)
