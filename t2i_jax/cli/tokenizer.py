"""`t2i evaluate tokenizer`: how well an image tokenizer gives images back."""

from __future__ import annotations

import pathlib
from typing import Annotated

from t2i_jax import paths
from t2i_jax.cli import measuring
from t2i_jax.cli.arguments import Shown
from t2i_jax.cli.measuring import WeightsFile
from t2i_jax.cli.progress import progress
from t2i_jax.values import Count


def tokenizer(
    run: pathlib.Path,
    images: Annotated[str, Shown("DIR", positional=False)],
    out: Annotated[pathlib.Path | None, Shown("DIR", default="RUN/eval/tokenizer")] = None,
    crop: str = "adm",
    mode: Annotated[str | None, Shown("MODE,MODE", default="tf")] = None,
    inception: WeightsFile = None,
    alex: WeightsFile = None,
    vgg: WeightsFile = None,
    batch_size: Count = 32,
    shard_size: Count = 1000,
    split: Annotated[str | None, Shown("SPLIT", default="heldout")] = None,
    step: Annotated[str | None, Shown("STEP", default="the newest")] = None,
) -> None:
    """Measure how well an image tokenizer gives images back: PSNR, SSIM, codebook usage and
    perplexity, rFID with --inception, LPIPS with --alex or --vgg; or with those files in the folder
    that T2I_WEIGHTS names.

    Args:
        run: Folder of the tokenizer's run.
        images: A folder of images, or another source, as arrayrecord:DIR.
        out: Folder of reconstructions and results; the same command goes on there.
        crop: How images become square: adm, as in ADM's reference batches of ImageNet, or center.
        mode: How images are made smaller for Inception.
        inception: pt_inception-2015-12-05-6726825d.pth.
        alex: alexnet-owt-7be5be79.pth, by which LPIPS is reported.
        vgg: vgg16-397923af.pth.
        batch_size: Images that are encoded at a time, on each device.
        shard_size: Images of a shard, which is written whole or not at all.
        split: Of a source with splits.
        step: The checkpoint: its step, or best.
    """

    from t2i_jax import runs
    from t2i_jax.cluster import processes
    from t2i_jax.runs.folder import checkpoint_step
    from t2i_jax.runs.scoring import networks, sources
    from t2i_jax.runs.scoring import tokenizer as tokenizers
    from t2i_jax.runs.scoring.split import Share

    run = paths.given("run", run)
    out = paths.folder("out", out or run / "eval" / "tokenizer")
    weights = networks.Weights(inception, alex=alex, vgg=vgg)
    networks.check_mode(mode, weights.of("inception") is not None, "inception")
    spec = sources.source_spec("images", images)
    part = sources.split_of(spec, split, "split")
    with processes.joined():
        chosen = checkpoint_step(step)
        system = runs.load(run, step=chosen)
        size = system.coded_size
        found = tokenizers.CroppedImages(spec, size, crop, shard_size, part)
        measures = tokenizers.Measures(
            networks.build("inception", networks.parse_modes(mode or "tf"), weights)
            if weights.of("inception")
            else (),
            networks.build_lpips(weights),
        )
        share = Share.here()
        results = tokenizers.evaluate(
            run,
            system,
            found,
            measures,
            out,
            share,
            batch_size,
            progress("shards", "shard"),
            chosen,
        )
        measuring.print_results(results, out)
