"""What the layers do that the Parti papers have and parti-pytorch leaves open, on shapes.

    python benchmarks/open_layers.py runs/layers            # trains what is not there
    python benchmarks/open_layers.py runs/layers window     # these rows alone

The rows of a layer are one recipe with and without it, the same number of updates from the same
seed. Parti's recipes are those of the quickstart with fewer updates, because with all of them every
row has 100%. Prints the table of docs/from_pytorch/parti-pytorch.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.quickstart.run import get_config
from t2i_jax.runs.evaluation import evaluate
from t2i_jax.runs.recipe import Init
from t2i_jax.train.log import metrics_of

UPDATES = {t2i.Parti: 800, t2i.PartiTransformer: 400, "decoder": 200}  # the first learns slower
_TOLD = {
    "reconstruction_psnr": "PSNR in dB",
    "validation/loss": "validation loss",
    "alignment_heldout": "right images",
}
_SIZES = {"dim": 128, "depth": 4, "heads": 4}
_SMALL = t2i.ViTVQGAN(
    image_size=32, patch_size=4, dim=64, layers=1, heads=2, mlp_dim=256, codebook_size=1024
)
_LARGE = {"decoder_dim": 128, "decoder_layers": 3, "decoder_heads": 4, "decoder_mlp_dim": 512}


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    told = parser.parse_args()
    print("| layer | recipe | found |\n|---|---|---|")
    for row in told.rows or ROWS:
        for name, make in ROWS[row].items():
            print(f"| {row} | {name} | {found(make(told.workdir), told.workdir / name)} |")


def pixel_head(kind: str):
    """The quickstart's tokenizer with the last layer of that kind."""

    def make(_):
        tokenizer = get_config().parts["tokenizer"]
        network = tokenizer.task.model.clone(pixel_head=kind)
        return dataclasses.replace(
            tokenizer, task=dataclasses.replace(tokenizer.task, model=network)
        )

    return make


def parti(network):
    """The quickstart's Parti with another network, on the tokenizer of the first row."""

    def make(workdir):
        recipe = get_config()
        return dataclasses.replace(
            recipe,
            task=dataclasses.replace(recipe.task, model=network),
            train=dataclasses.replace(
                recipe.train, steps=UPDATES[type(network)], validate_every=None
            ),
            parts={"tokenizer": str(_tokenizer(workdir))},
        )

    return make


def small_tokenizer(_):
    """The ViT-VQGAN of one layer that the larger decoder begins with."""
    tokenizer = get_config().parts["tokenizer"]
    return dataclasses.replace(tokenizer, task=t2i.TokenizerTask(_SMALL, l2_weight=1.0))


def decoder(network):
    """A decoder alone, on the small tokenizer's frozen encoder and codebook."""

    def make(workdir):
        small = workdir / "small tokenizer"
        found(small_tokenizer(workdir), small)
        recipe = small_tokenizer(workdir)
        return dataclasses.replace(
            recipe,
            task=t2i.TokenizerTask(network, l2_weight=1.0, trained="decoder"),
            train=dataclasses.replace(recipe.train, steps=UPDATES["decoder"]),
            init=Init(str(small), misfits="new"),
        )

    return make


ROWS = {
    "pixel_head": {
        "linear head": pixel_head("linear"),
        "implicit head": pixel_head("implicit"),
    },
    "larger decoder": {
        "small tokenizer": small_tokenizer,
        "same decoder, trained on": decoder(_SMALL),
        "larger decoder": decoder(_SMALL.clone(**_LARGE)),
    },
    "rel_pos_init": {
        "Parti, normal bias": parti(t2i.Parti(**_SIZES, dim_head=32)),
        "Parti, conv bias": parti(t2i.Parti(**_SIZES, dim_head=32, rel_pos_init="conv")),
    },
    "window": {
        "PartiTransformer, all": parti(t2i.PartiTransformer(**_SIZES, mlp_dim=512)),
        "PartiTransformer, window of 7": parti(
            t2i.PartiTransformer(**_SIZES, mlp_dim=512, window=7)
        ),
    },
}


def _tokenizer(workdir):
    run = workdir / "linear head"
    found(pixel_head("linear")(workdir), run)
    return run


def found(recipe: t2i.Recipe, run: pathlib.Path) -> str:
    """Trains and evaluates a run that has not been yet; what its metrics tell of held-out data."""
    if "validation/loss" not in (metrics_of(run) or {}):
        evaluate(recipe, runs.train(recipe, run), run)
    metrics = metrics_of(run)
    return ", ".join(
        f"{told} {metrics[name]:.4g}" for name, told in _TOLD.items() if name in metrics
    )


if __name__ == "__main__":
    main()
