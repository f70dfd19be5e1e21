"""All numbers of a small evaluation in every mode of Inception, beside those that stand in
frozen.json: what is measured today is what was measured before.

`python -m tests.runs.test_scoring_frozen` writes the file anew, after a change that is meant to
change them.
"""

import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.eval import resize
from t2i_jax.eval.extractors import Extractor
from t2i_jax.runs.scoring.job import Job, evaluate_source
from tests.runs.scoring_toys import toy_extractor, write_images

_FILE = pathlib.Path(__file__).with_name("frozen.json")
_METRICS = ("fid", "fid_infinity", "kid", "is", "pr", "dc", "clip", "clip_gigagan", "cmmd", "fdd")
_WEIGHTS = np.random.default_rng(3).normal(size=(27, 8)).astype(np.float32) / 3


def _inception(mode):
    """Pixels at nine places of the network's input, which a resizer changes, through random
    weights.
    """

    def apply(params, x_BHWC):
        values = jnp.tanh(x_BHWC[:, 40:300:100, 40:300:100].reshape(len(x_BHWC), -1) @ params)
        return {"pool3": values, "logits_unbiased": 3 * values}

    about = {"preprocessing": {"mode": mode}}
    return Extractor(f"inception-{mode}", about, resize.INCEPTION[mode], apply, _WEIGHTS)


def _build(network, modes, weights):
    if network == "inception":
        return [_inception(mode) for mode in modes]
    return [toy_extractor(f"{network}-toy")]


def _measured(home):
    made = write_images(home / "made", 24, seed=1, size=40)
    real = write_images(home / "real", 30, seed=2, size=350)
    job = Job(_METRICS, home / "out", modes=tuple(resize.INCEPTION), reference=str(real))
    results = evaluate_source(job, f"folder:{made}", None, _build)
    return {one["name"]: one["value"] for one in results["metrics"]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return _measured(tmp_path_factory.mktemp("frozen"))


def test_numbers_are_those_of_before(measured):
    frozen = json.loads(_FILE.read_text())
    assert sorted(frozen) == sorted(measured)
    for name, value in frozen.items():
        assert measured[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_every_mode_has_numbers_of_its_own(measured):
    of_fid = [value for name, value in measured.items() if name.startswith("fid_")]
    assert len(set(of_fid)) == len(of_fid) >= 2 * len(resize.INCEPTION)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(pathlib.Path(folder))
    _FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
