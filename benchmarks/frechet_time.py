"""The Frechet distance beside what pytorch-fid and clean-fid do: scipy's square root of a matrix.

    python benchmarks/frechet_time.py [--images 10000] [--width 2048] [--repeats 3]

In turns, medians: `scipy.linalg.sqrtm` of the product of two covariances, once with the threads
that BLAS takes by itself and once with one; ours from two covariances; and ours from features, the
covariance of the generated images included.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from scipy import linalg
from threadpoolctl import threadpool_limits

from t2i_jax.eval.frechet import Gaussian, frechet
from t2i_jax.eval.moments import Moments


def main() -> None:
    """Measures and prints seconds, and how many times quicker than the quicker square root."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((told.width, told.width), np.float32) / told.width**0.5
    features = [rng.standard_normal((told.images, told.width), np.float32) for _ in range(2)]
    features[1] = features[1] @ mixed
    reference, other = (Gaussian.of(Moments.of(one)) for one in features)
    product = reference.covariance_DD @ other.covariance_DD

    ways = {
        "scipy.linalg.sqrtm": lambda: linalg.sqrtm(product),
        "scipy.linalg.sqrtm, one thread": threadpool_limits.wrap(1)(lambda: linalg.sqrtm(product)),
        "frechet": lambda: frechet(other, reference),
        "frechet, from features": lambda: frechet(Gaussian.of(Moments.of(features[1])), reference),
    }
    took = {name: [] for name in ways}
    for _ in range(told.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    peer = min(seconds for name, seconds in medians.items() if "sqrtm" in name)
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.2f} s, {peer / seconds:.1f}x")


if __name__ == "__main__":
    main()
