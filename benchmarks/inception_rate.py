"""How many images of 299 pixels a second go through the Inception of FID: ours, torch-fidelity's
extractor, and that under torch.compile.

    python benchmarks/inception_rate.py --images 64
    python benchmarks/inception_rate.py --images 8 --batch 4 --without compiled

The sides run in turns, A B C A B C, on the same random weights and the same images in memory; the
table has medians of the wall clock and of the processor time. The latter tells more where other
programs run beside it.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
import numpy as np
import random_inception
import torch

from t2i_jax.eval import extractors

SIDES = ("ours", "torch-fidelity", "compiled")


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    options = _options(arguments)
    images = np.random.default_rng(0).integers(
        0, 256, (options.images, 299, 299, 3), dtype=np.uint8
    )
    with tempfile.TemporaryDirectory() as folder:
        path = random_inception.write(pathlib.Path(folder) / "inception.pth")
        sides = {name: _SIDES[name](path, options.batch) for name in options.sides}
        for side in sides.values():  # compiles, and takes the memory that it needs
            side(images[: options.batch])
        times = {name: [] for name in sides}
        for _ in range(options.repeats):
            for name, side in sides.items():
                times[name].append(_timed(side, images))
    print(table(times, options))


def table(times: dict[str, list[tuple[float, float]]], options: argparse.Namespace) -> str:
    """A table of medians, and above it what they were measured on."""
    lines = [
        f"{options.images} images, batches of {options.batch}, {options.repeats} turns; "
        f"{os.cpu_count()} processors, torch {torch.__version__}, jax {jax.__version__}",
        "",
        "| side | images/s | processor ms an image | ours to it, wall | ours to it, processor |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    medians = {
        name: [statistics.median(column) for column in zip(*turns, strict=True)]
        for name, turns in times.items()
    }
    for name, (wall, processor) in medians.items():
        ratios = (
            f"{theirs / own:.2f}x"
            for theirs, own in zip((wall, processor), medians["ours"], strict=True)
        )
        rate, each = options.images / wall, 1000 * processor / options.images
        lines.append(f"| {name} | {rate:.2f} | {each:.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def _options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", choices=SIDES[1:], nargs="*", default=[])
    options = parser.parse_args(arguments)
    for name in ("images", "batch", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)} is below 1; give 1 or more")
    options.sides = [side for side in SIDES if side not in options.without]
    return options


def _timed(side, images):
    wall, processor = time.perf_counter(), time.process_time()
    side(images)
    return time.perf_counter() - wall, time.process_time() - processor


def _ours(path, batch):
    extractor = extractors.inception(path, "tf")
    return lambda images: extractor.features(images, batch, layers=["pool3"])


def _torch_fidelity(path, batch, compiled=False):
    random_inception.import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(path)
    )
    network = torch.compile(network) if compiled else network

    def run(images):
        found = []
        with torch.no_grad():
            for start in range(0, len(images), batch):
                part = np.moveaxis(images[start : start + batch], 3, 1)
                found.append(network(torch.from_numpy(np.ascontiguousarray(part)))[0].numpy())
        return np.concatenate(found)

    return run


_SIDES = {
    "ours": _ours,
    "torch-fidelity": _torch_fidelity,
    "compiled": lambda path, batch: _torch_fidelity(path, batch, compiled=True),
}

if __name__ == "__main__":
    main()
