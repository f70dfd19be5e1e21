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
from PIL import Image

from t2i_jax.eval import resize
from t2i_jax.eval.extractors import Extractor
from t2i_jax.runs.scoring.job import Job, evaluate_source
from tests.runs.scoring_toys import features_of, toy_extractor, write_images

_FILE = pathlib.Path(__file__).with_name("frozen.json")
_METRICS = (
    "fid", "fid_infinity", "kid", "is", "pr", "dc", "clip", "clip_gigagan", "cmmd", "fdd",
    "pickscore", "hpsv2",
)  # fmt: skip
_SUBSET, _SPLIT = 20, 7  # images in place of the 1000 and 5000 of the other packages
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t2i_jax.runs.scoring.metrics.SUBSET_SIZE", _SUBSET)
        patch.setattr("t2i_jax.runs.scoring.metrics.ADM_SPLIT", _SPLIT)
        results = evaluate_source(job, f"folder:{made}", None, _build)
    return {one["name"]: one["value"] for one in results["metrics"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def measured(home):
    return _measured(home)


def test_numbers_are_those_of_before(measured):
    frozen = json.loads(_FILE.read_text())
    assert sorted(frozen) == sorted(measured)
    for name, value in frozen.items():
        assert measured[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_every_mode_has_numbers_of_its_own(measured):
    of_fid = [value for name, value in measured.items() if name.startswith("fid_")]
    assert len(set(of_fid)) == len(of_fid) >= 2 * len(resize.INCEPTION)


def test_scores_of_preference_are_cosines_of_which_pickscore_is_scaled(home, measured):
    toy, paths = toy_extractor(), sorted((home / "made").glob("*.png"))
    vectors = features_of(home / "made"), toy.text_features([
        path.with_suffix(".txt").read_text() for path in paths
    ])  # fmt: skip
    image_ND, text_ND = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in vectors)
    cosine = np.mean(np.sum(image_ND * text_ND, axis=1))
    assert measured["score_hpsv2_toy"] == pytest.approx(cosine, rel=1e-5)
    assert measured["score_pickscore_toy"] == pytest.approx(toy.logit_scale * cosine, rel=1e-5)


def test_numbers_of_many_images_alone(home, measured):
    """KID as torch-fidelity draws its subsets, and the Inception Score of ADM's evaluator, whose
    last split is a smaller one.
    """
    network = _inception("tf")
    x_ND, y_ND = (
        network.features([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
        for folder in (home / "made", home / "real")
    )
    draw, distances = np.random.RandomState(2020), []
    for _ in range(100):
        x_SD, y_SD = (
            one["pool3"][draw.choice(len(one["pool3"]), _SUBSET, replace=False)].astype(np.float64)
            for one in (x_ND, y_ND)
        )
        xx, yy, xy = (
            (a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x_SD, x_SD), (y_SD, y_SD), (x_SD, y_SD))
        )
        others = _SUBSET * (_SUBSET - 1)
        distances.append(sum((k.sum() - k.trace()) / others for k in (xx, yy)) - 2 * xy.mean())
    assert measured["kid_subsets_tf_inception"] == pytest.approx(np.mean(distances), rel=1e-5)
    scores = []
    for start in range(0, 24, _SPLIT):
        e_NC = np.exp(x_ND["logits_unbiased"][start : start + _SPLIT].astype(np.float64))
        p_NC = e_NC / e_NC.sum(axis=1, keepdims=True)
        scores.append(np.exp(np.mean(np.sum(p_NC * np.log(p_NC / p_NC.mean(axis=0)), axis=1))))
    assert len(scores) == 4
    assert measured["inception_score_adm_tf_inception"] == pytest.approx(np.mean(scores), rel=1e-5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(pathlib.Path(folder))
    _FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
