"""The whole way through the command line with two processes: what one makes, written once."""

import json

import numpy as np
from PIL import Image

from ..loopback import end, losses, start
from .command import inside

_CONFIG = "tests/e2e/tiny.py"


def test_two_processes_make_what_one_makes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    changes = ("train.eval_every=4", "train.validate_every=4")
    sharded = ("train.rules=fsdp", "train.mesh={'fsdp': 2}")
    inside("train", _CONFIG, *changes, "--workdir", one)
    together = start(
        2, "-m", "t2i_jax.cli.main", "train", _CONFIG, *changes, *sharded, "--workdir", two
    )
    statuses, out, err = end(together)
    assert statuses == [0, 0], err
    assert "alignment_heldout: " in out[0] and "alignment_heldout" not in out[1]
    assert "steps/s" in err[0] and "steps/s" not in err[1]

    for stage in ("tokenizer", "."):
        here, there = losses(one / stage), losses(two / stage)
        assert list(here) == list(there) == [1, 2, 4]
        np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-3)

    here, there = (losses(run, "validation/loss") for run in (one, two))
    assert list(here) == list(there) == [4]  # each process has read its half of the batches
    np.testing.assert_allclose(there[4], here[4], rtol=1e-3)

    def names(workdir):
        return sorted(path.name for path in (workdir / "samples").iterdir())

    assert names(one) == names(two) == ["0000004.png", "heldout.png"]
    grids = [
        np.asarray(Image.open(workdir / "samples" / "0000004.png"), float) for workdir in (one, two)
    ]
    assert grids[0].shape == grids[1].shape and np.abs(grids[0] - grids[1]).mean() < 2
    figures = [json.loads((workdir / "metrics.json").read_text()) for workdir in (one, two)]
    assert list(figures[0]) == list(figures[1]) and "alignment_heldout" in figures[0]
    vocabulary = [
        (workdir / "text_tokenizer" / "tokenizer.json").read_bytes() for workdir in (one, two)
    ]
    assert vocabulary[0] == vocabulary[1]

    again = inside("eval", two).stdout  # by one process, of what two have saved
    assert (
        f"alignment_heldout/background: {figures[1]['alignment_heldout/background']:.4g}" in again
    )
