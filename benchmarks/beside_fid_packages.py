"""Ours beside pytorch-fid, torch-fidelity, torchmetrics and clean-fid: two folders of real images,
one Inception of random weights given to all.

    python benchmarks/beside_fid_packages.py --images 24

The images are windows of the two photographs that scikit-learn ships, of several sizes. With random
weights the numbers mean nothing but that the packages agree. FID is of the layer of 192 features:
with fewer images than features the packages' matrix square roots are no longer exact.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import numpy as np
import random_inception
import sklearn.datasets
import torch
from PIL import Image

from t2i_jax.eval import extractors, resize
from t2i_jax.eval.frechet import frechet_of_features

_LAYER = "192"


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="in each of the two folders")
    count = parser.parse_args(arguments).images
    random_inception.import_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        path = random_inception.write(pathlib.Path(folder) / "inception.pth")
        sets = windows(count)
        ours = extractors.inception(path, "tf")
        print(f"{count} windows of each photograph, {_LAYER} features")
        print("\n| package | theirs | ours | apart, relative |\n| --- | ---: | ---: | ---: |")
        for name, mode, theirs in (
            ("pytorch-fid", "pytorch-fid", _pytorch_fid),
            ("torch-fidelity", "tf", _torch_fidelity),
            ("torchmetrics", "torchmetrics", _torchmetrics),
            ("clean-fid (its resizer and distance)", "clean", _clean_fid),
        ):
            expected, found = theirs(path, sets), _ours(ours, mode, sets)
            apart = abs(found - expected) / abs(expected)
            print(f"| {name} | {expected:.9g} | {found:.9g} | {apart:.0e} |", flush=True)


def windows(count: int) -> list[list[np.ndarray]]:
    """So many windows of each photograph, uint8, from 96 to 400 pixels a side and not square."""
    rng, sets = np.random.default_rng(0), []
    for photo in sklearn.datasets.load_sample_images().images:
        cut = []
        for _ in range(count):
            size = rng.integers(96, 400, 2)
            top, left = (rng.integers(0, whole - part) for whole, part in zip(
                photo.shape[:2], size, strict=True))  # fmt: skip
            cut.append(np.ascontiguousarray(photo[top : top + size[0], left : left + size[1]]))
        sets.append(cut)
    return sets


def _ours(extractor, mode, sets):
    """One compiled program for all modes: they differ by how images are prepared."""
    prepare = resize.INCEPTION[mode]
    program, params = extractor._placed[1:]
    features = [
        np.concatenate([program(params, prepare(image)[None])["pool2"] for image in images])
        for images in sets
    ]
    return frechet_of_features(*features).value


def _pytorch_fid(path, sets):
    from pytorch_fid import fid_score, inception

    inception.load_state_dict_from_url = lambda *_, **__: torch.load(path, weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        folders = [pathlib.Path(folder) / str(i) for i in range(2)]
        for place, images in zip(folders, sets, strict=True):
            place.mkdir()
            for i, image in enumerate(images):
                Image.fromarray(image).save(place / f"{i:05}.png")
        paths = [str(place) for place in folders]
        return float(fid_score.calculate_fid_given_paths(paths, 1, "cpu", int(_LAYER), 0))


def _torch_fidelity(path, sets):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    network = FeatureExtractorInceptionV3("x", [_LAYER], feature_extractor_weights_path=str(path))
    statistics = []
    for images in sets:
        with torch.no_grad():
            found = [network(_nchw(image))[0] for image in images]
        statistics.append(fid_features_to_statistics(torch.cat(found)))
    result = fid_statistics_to_metric(*statistics, verbose=False)
    return float(next(iter(result.values())))


def _torchmetrics(path, sets):
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(
        int(_LAYER), feature_extractor_weights_path=str(path)
    ).set_dtype(torch.float64)
    for images, real in zip(sets, (False, True), strict=True):
        for image in images:
            metric.update(_nchw(image), real=real)
    return float(metric.compute())


def _clean_fid(path, sets):
    from cleanfid.fid import frechet_distance
    from cleanfid.resize import build_resizer
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network, resizer = (
        FeatureExtractorInceptionV3("x", [_LAYER], feature_extractor_weights_path=str(path)),
        build_resizer("clean"),
    )
    statistics = []
    for images in sets:
        found = []
        for image in images:
            pixels = torch.from_numpy(resizer(image).transpose(2, 0, 1)[None].copy())
            found.append(_after_resizing(network, pixels))
        features = np.concatenate(found).astype(np.float64)
        statistics += [features.mean(0), np.cov(features, rowvar=False)]
    return float(frechet_distance(*statistics))


def _after_resizing(network, pixels):
    """The features of float pixels of 299 a side, which the extractor takes as uint8 only."""
    with torch.no_grad():
        x = (pixels - 128) / 128
        for name in (
            "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1",
            "Conv2d_4a_3x3", "MaxPool_2",
        ):  # fmt: skip
            x = getattr(network, name)(x)
        return x.mean((2, 3)).numpy()


def _nchw(image):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0)[None]))


if __name__ == "__main__":
    main()
