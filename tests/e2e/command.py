"""The command line as a user starts it: processes, exit statuses, what they print."""

import contextlib
import io
import re
import subprocess
import sys
from unittest import mock

import numpy as np
from PIL import Image

from t2i_jax.cli import main as cli


def t2i_command(*arguments):
    """What starts `t2i` in a process of its own."""
    return [sys.executable, "-m", "t2i_jax.cli.main", *map(str, arguments)]


def run(*arguments, status=0):
    """The finished process; fails on another exit status."""
    done = subprocess.run(t2i_command(*arguments), capture_output=True, text=True, timeout=500)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def inside(*arguments, status=0):
    """The same in this process, which has imported and compiled already.

    Returns what was printed.
    """
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["t2i", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    assert code == status, err.getvalue()[-3000:]
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(*arguments, by=inside):
    """The one sentence that a mistake gets, without what was told of cut captions and of stages.

    `by=run` makes it in a process of its own, where nothing else may be printed either.
    """
    lines = by(*arguments, status=2).stderr.splitlines()
    told = re.compile(r" (cut|for all|alike)\.$|; so (is one other|are \d+ others)\.$")
    lines = [line for line in lines if not told.search(line)]
    assert len(lines) == 1 and lines[0].startswith("t2i: ") and "Traceback" not in lines[0], lines
    return lines[0]


def pictures(folder):
    """What `t2i sample --out folder` painted: arrays by file name."""
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*-*.png"))}
