"""The formulas of evaluation beside clean-fid, pytorch-fid, torch-fidelity and torchmetrics, on
features that are given to all of them.
"""

import numpy as np
import pytest

from t2i_jax.eval.frechet import Gaussian, frechet
from t2i_jax.eval.inception_score import inception_score
from t2i_jax.eval.kid import kid_by_subsets
from t2i_jax.eval.manifold import precision_recall
from t2i_jax.eval.moments import Moments
from tests.parity.reference import load

torch = pytest.importorskip("torch")
cleanfid, pytorch_fid = load("cleanfid.fid"), load("pytorch_fid.fid_score")
metric_fid, metric_isc, metric_kid, metric_prc = (
    load(f"torch_fidelity.metric_{name}") for name in ("fid", "isc", "kid", "prc")
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of sqrtm's `disp`

RNG = np.random.default_rng(0)
X = np.abs(RNG.normal(size=(400, 64))) @ np.abs(RNG.normal(size=(64, 64))) / 20
Y = np.abs(RNG.normal(size=(500, 64))) @ np.abs(RNG.normal(size=(64, 64))) / 20
OURS = Gaussian.of(Moments.of(X)), Gaussian.of(Moments.of(Y))
OTHERS = [array for one in (X, Y) for array in (one.mean(0), np.cov(one, rowvar=False))]


@pytest.mark.parametrize(
    "distance", [cleanfid.frechet_distance, pytorch_fid.calculate_frechet_distance]
)
def test_frechet_of_scipys_square_root(distance):
    assert frechet(*OURS).value == pytest.approx(float(distance(*OTHERS)), rel=1e-9)


def test_frechet_of_torch_fidelity():
    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(one)) for one in (X, Y)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet(*OURS).value == pytest.approx(theirs[metric_fid.KEY_METRIC_FID], rel=1e-9)


def test_frechet_of_torchmetrics_which_returns_float32():
    image = load("torchmetrics.image.fid")

    class Given(torch.nn.Module):
        num_features = 64

        def forward(self, images):
            return images

    metric = image.FrechetInceptionDistance(Given(), input_img_size=(64,))
    metric.update(torch.from_numpy(X), real=False)
    metric.update(torch.from_numpy(Y), real=True)
    assert frechet(*OURS).value == pytest.approx(float(metric.compute()), rel=1e-6)


def test_kid_of_torch_fidelitys_subsets():
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(X), torch.from_numpy(Y), kid_subsets=20, kid_subset_size=90, verbose=False,
        rng_seed=2020, kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
    )  # fmt: skip
    ours = kid_by_subsets(X, Y, subsets=20, size=90)
    assert ours.mean == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-9)
    assert ours.std == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-9)


def test_kid_of_clean_fid_within_the_spread_of_its_subsets():
    np.random.seed(0)
    theirs = cleanfid.kernel_distance(X, Y, num_subsets=20, max_subset_size=300)
    ours = kid_by_subsets(X, Y, subsets=20, size=300)
    assert ours.mean == pytest.approx(theirs, abs=ours.std)


@pytest.mark.parametrize("shuffle", [True, False])
def test_inception_score_of_torch_fidelity(shuffle):
    logits = 3 * RNG.normal(size=(203, 40))
    theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), shuffle=shuffle)
    ours = inception_score(logits, seed=2020 if shuffle else None)
    assert ours.mean == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-12)
    assert ours.std == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_STD], rel=1e-9)


def test_precision_and_recall_of_torch_fidelity():
    near = X + 0.01
    theirs = metric_prc.prc_features_to_metric(
        torch.from_numpy(near), torch.from_numpy(X[:300]), prc_neighborhood=3, prc_batch_size=128,
        save_cpu_ram=False, verbose=False,
    )  # fmt: skip
    ours = precision_recall(near, X[:300])
    assert ours.precision == pytest.approx(theirs[metric_prc.KEY_METRIC_PRECISION], rel=1e-6)
    assert ours.recall == pytest.approx(theirs[metric_prc.KEY_METRIC_RECALL], rel=1e-6)
    assert ours.precision > 0.5 and ours.recall > 0.5
