"""Two folders of images from end to end, by clean-fid and by `t2i evaluate`, through one small
network in the place of Inception; and what clean-fid and pytorch-fid write of a folder, read here.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from t2i_jax.eval import resize
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.frechet import Gaussian
from t2i_jax.eval.moments import Moments
from t2i_jax.eval.statistics_file import read_statistics
from t2i_jax.runs.scoring.job import Job, evaluate_source
from tests.parity.reference import load
from tests.runs.scoring_toys import write_images

torch = pytest.importorskip("torch")
cleanfid, pytorch_fid = load("cleanfid.fid"), load("pytorch_fid.fid_score")

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


def _of_clean_fid(images, home, patch):
    patch.setattr("cleanfid.__file__", str(home / "__init__.py"))
    patch.setattr(cleanfid, "build_feature_extractor", lambda *_: _theirs)
    cleanfid.make_custom_stats("Set", str(images), device=torch.device("cpu"), verbose=False)
    return home / "stats" / "set_clean_custom_na.npz"


def _of_pytorch_fid(images, home, patch):
    class Network(torch.nn.Module):
        BLOCK_INDEX_BY_DIM = {_WIDTH: 0}

        def __init__(self, blocks):
            super().__init__()

        def forward(self, x_BCHW):
            x_BCHW = torch.nn.functional.interpolate(x_BCHW, (299, 299), mode="bilinear")
            return [_theirs(255 * x_BCHW)[..., None, None]]

    patch.setattr(pytorch_fid, "InceptionV3", Network)
    pytorch_fid.save_fid_stats([str(images), str(home / "set.npz")], 9, "cpu", _WIDTH, 0)
    return home / "set.npz"


def _apart(one: Gaussian, other: Gaussian):
    """How far two are apart, as parts of the largest values."""
    pairs = ((one.mean_D, other.mean_D), (one.covariance_DD, other.covariance_DD))
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]


_WRITE = {"clean": _of_clean_fid, "pytorch-fid": _of_pytorch_fid}


@pytest.mark.parametrize("mode", _WRITE)
def test_statistics_that_they_wrote_are_ours_of_the_same_folder(mode, tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", 9, seed=2, size=40)
    file = _WRITE[mode](images, tmp_path, monkeypatch)
    found = read_statistics(file, f"inception-{mode}", mode).gaussian
    ours = _extractor(mode, _MODES[mode][1]).features(
        [np.asarray(Image.open(path)) for path in sorted(images.glob("*.png"))], batch_size=9
    )
    # two networks of float32
    assert max(_apart(found, Gaussian.of(Moments.of(ours["pool3"])))) < 1e-5
    if mode == "clean":  # it keeps the features too, and averages them in float32
        kept = read_statistics(file.with_name("set_clean_custom_na_kid.npz"), "inception-x", "x")
        mean, covariance = _apart(found, kept.gaussian)
        assert mean < 1e-6 and covariance < 1e-9 and len(kept.features_ND) == 9
