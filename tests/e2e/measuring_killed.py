"""One of several processes that evaluate what `tests.e2e.measuring` has trained, into the folder
"killed": `python -m tests.e2e.measuring_killed HOME N` is killed by a signal where it would give
its N-th file of features its name; N=0: it is not.
"""

import os
import pathlib
import signal
import sys
from unittest import mock

from t2i_jax.cluster import processes
from tests.e2e import measuring
from tests.runs import scoring_toys

_RENAME, _features = pathlib.Path.replace, []


def _rename(self, target):
    """Path.replace, up to that file."""
    if self.suffix == ".npz":
        _features.append(self)
        if len(_features) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    return _RENAME(self, target)


if __name__ == "__main__":
    scoring_toys.use(measuring.Patch())
    home = pathlib.Path(sys.argv[1])
    with mock.patch.object(pathlib.Path, "replace", _rename), processes.joined():
        measuring.evaluate(home, home / "killed")
