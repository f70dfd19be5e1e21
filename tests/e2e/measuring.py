"""One of several processes that train the toy system, measure its images meanwhile and evaluate it:
`python -m tests.e2e.measuring HOME`, where HOME holds prompts.txt and the folder real.
"""

import dataclasses
import pathlib
import sys
from unittest import mock

from t2i_jax import runs
from t2i_jax.cluster import processes
from t2i_jax.eval import prompts
from t2i_jax.runs.recipe import changed
from t2i_jax.runs.scoring.job import Job, evaluate_run
from tests.runs import scoring_toys
from tests.toy_system import recipe as toy

NAMES = ("fid_6", "kid_9", "clip_5")


def recipe():
    """The toy, measured at the steps 2 and 4."""
    plain = changed(toy.get_config(), ["evaluation.options.noise=0.3", "train.eval_every=0"])
    asked = {"every": 2, "metrics": NAMES, "best": "fid_6"}
    return dataclasses.replace(plain, evaluation=dataclasses.replace(plain.evaluation, **asked))


def evaluate(home: pathlib.Path, out: pathlib.Path, mesh=None):
    """What `t2i evaluate` does, in shards of two images."""
    asked = {"reference": str(home / "real"), "shard_size": 2, "batch_size": 2, "mesh": mesh}
    job = Job(("fid", "kid", "clip"), out, **asked)
    evaluate_run(job, home / "run", recipe(), None, prompts.read(str(home / "prompts.txt")))


class Patch:
    """Puts things in the place of others for good, as pytest does for a while."""

    def setattr(self, where, value):
        """`where` as in mock.patch."""
        mock.patch(where, value).start()


if __name__ == "__main__":
    scoring_toys.use(Patch())
    with processes.joined():
        runs.train(recipe(), pathlib.Path(sys.argv[1]) / "run")
        evaluate(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1]) / "two")
