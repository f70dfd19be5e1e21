"""How much of what a model lacks reranking gives: alignment of any image, and of the image that a
CLIP finds the best of several.

    t2i train configs/parti/shapes.py train.steps=500 --workdir runs/half
    t2i train configs/clip/shapes.py --workdir runs/clip
    python benchmarks/reranking.py runs/half runs/clip

For a run that is judged (`evaluation.judge`), on held-out captions, with the sampling options of
its recipe. Prints a row of the table of docs/dalle2.md for each number of images.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from t2i_jax import runs
from t2i_jax.cli.rerank import best
from t2i_jax.eval.evaluation import JUDGES
from t2i_jax.runs.evaluation import held_out


def main() -> None:
    """Samples, ranks, judges, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("clip", type=pathlib.Path)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--of", type=int, nargs="+", default=[2, 4, 8])
    told = parser.parse_args()
    recipe = runs.load_run_recipe(told.run)
    captions = list(held_out(recipe)(told.captions, ("caption",))["caption"])
    judge = JUDGES[recipe.evaluation.judge]()
    most = max(told.of)
    images = runs.load(told.run).generate(
        captions, recipe.evaluation.options, images_per_prompt=most, batch_size=100
    )
    right = np.asarray(judge.judge(images, np.repeat(captions, most).tolist()))
    print(f"| any | {np.mean(right):.1%} |")
    clip, of_each = runs.load(told.clip), images.reshape(len(captions), most, *images.shape[1:])
    for count in told.of:
        few = of_each[:, :count].reshape(-1, *images.shape[1:])
        chosen, _ = best(clip, few, captions, 1)
        print(f"| best of {count} | {np.mean(judge.judge(chosen, captions)):.1%} |", flush=True)


if __name__ == "__main__":
    main()
