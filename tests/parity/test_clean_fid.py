"""Two folders of images from end to end, by clean-fid and by `t2i evaluate`, through one small
network in the place of Inception.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.eval import resize
from t2i_jax.eval.extractors import Extractor
from t2i_jax.runs.scoring.job import Job, evaluate_source
from tests.parity.reference import load
from tests.runs.scoring_toys import write_images

torch = pytest.importorskip("torch")
cleanfid = load("cleanfid.fid")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of sqrtm's `disp`

_BLOCK, _WIDTH = 74, 12  # of 299 pixels 4 x 4 blocks, whose means go through random weights
_WEIGHTS = np.random.default_rng(0).normal(size=(48, _WIDTH)).astype(np.float32) / 7
_MODES = {  # by ours clean-fid's, and what turns the network's input into levels from 0 to 255
    "clean": ("clean", lambda x: x * 128 + 128),
    "pytorch-fid": ("legacy_pytorch", lambda x: (x + 1) * 127.5),
}


def _theirs(levels_BCHW):
    means = torch.nn.functional.avg_pool2d(levels_BCHW / 255, _BLOCK)
    return torch.tanh(means.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(_WEIGHTS))


def _extractor(mode, levels):
    side = 4 * _BLOCK

    def apply(params, x_BHWC):
        blocks = levels(x_BHWC)[:, :side, :side].reshape(-1, 4, _BLOCK, 4, _BLOCK, 3) / 255
        values = jnp.tanh(blocks.mean((2, 4)).reshape(len(x_BHWC), -1) @ params)
        return {"pool3": values, "logits_unbiased": values}

    about = {"preprocessing": {"mode": mode}}
    return Extractor(f"inception-{mode}", about, resize.INCEPTION[mode], apply, _WEIGHTS)


@pytest.mark.parametrize("mode", _MODES)
def test_the_number_of_two_folders(mode, tmp_path):
    """Images of two sizes, one smaller and one larger than 299 pixels; more of them than features
    on one side, fewer on the other.
    """
    made = write_images(tmp_path / "made", 20, seed=1, size=40)
    real = write_images(tmp_path / "real", 9, seed=2, size=350)
    theirs, levels = _MODES[mode]
    expected = cleanfid.compute_fid(
        str(made), str(real), mode=theirs, num_workers=0, device=torch.device("cpu"),
        custom_feat_extractor=_theirs, use_dataparallel=False, verbose=False,
    )  # fmt: skip
    job = Job(("fid",), tmp_path / "out", modes=(mode,), reference=str(real))
    results = evaluate_source(
        job, f"folder:{made}", None, lambda network, modes, weights: [_extractor(mode, levels)]
    )
    [found] = results["metrics"]
    assert found["name"] == f"fid_{mode.replace('-', '_')}_inception"
    assert (found["n_generated"], found["n_reference"]) == (20, 9)
    assert found["value"] == pytest.approx(float(expected), rel=1e-5) and expected > 0.01
