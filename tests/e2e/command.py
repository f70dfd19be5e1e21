"""The command line as a user starts it: processes, exit statuses, what they print."""

import subprocess
import sys


def t2i_command(*arguments):
    """What starts `t2i` in a process of its own."""
    return [sys.executable, "-m", "t2i_jax.cli.main", *map(str, arguments)]


def run(*arguments, status=0):
    """The finished process; fails on another exit status."""
    done = subprocess.run(t2i_command(*arguments), capture_output=True, text=True, timeout=500)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def refused(*arguments):
    """The one sentence that a mistake gets."""
    lines = run(*arguments, status=2).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("t2i: ") and "Traceback" not in lines[0], lines
    return lines[0]
