"""`t2i evaluate reference`: statistics of real images, in a file."""

from __future__ import annotations

import pathlib
from typing import Annotated

from t2i_jax import paths
from t2i_jax.cli import measuring
from t2i_jax.cli.arguments import Shown
from t2i_jax.cli.measuring import WeightsFile, WeightsFolder
from t2i_jax.cli.progress import progress
from t2i_jax.errors import UserError
from t2i_jax.values import Count


def reference(
    images: Annotated[str, Shown("DIR", positional=True)],
    out: Annotated[pathlib.Path, Shown("FILE.npz", positional=False)],
    network: str = "inception",
    mode: Annotated[str | None, Shown("MODE,MODE", default="those of --protocol, or clean")] = None,
    protocol: Annotated[str | None, Shown("NAME")] = None,
    size: Annotated[Count | None, Shown("PIXELS")] = None,
    keep_features: bool = False,
    adm: bool = False,
    clean_fid: Annotated[str | None, Shown("NAME")] = None,
    split: str = "train",
    inception: WeightsFile = None,
    clip: WeightsFolder = None,
    cmmd: WeightsFolder = None,
    dinov2: WeightsFolder = None,
) -> None:
    """Make statistics of real images, which others read too: mu and sigma in an npz.

    A JSON file beside it says how they were made. Of several modes, as coco30k has them, FILE.npz
    is of the first, and those of the others are beside it, as FILE-tf.npz; --reference FILE.npz
    takes them together.

    Args:
        images: A folder of images, or another source, as arrayrecord:DIR.
        out: The npz to write. An existing one is left as it is: where the same command has made it,
            that is said, and else it is refused.
        network: Of which features: inception, clip, cmmd or dinov2.
        mode: How images are made smaller for Inception.
        protocol: A named protocol, which brings images to its size first, and has modes of its own.
        size: At which a built-in dataset is drawn, that of the images it will be compared with. A
            protocol says it itself.
        keep_features: Keep the features too, for KID, recall and CMMD.
        adm: Keep the images too, and the statistics of sFID, as OpenAI's evaluator reads them; it
            takes the mode tf.
        clean_fid: Write also, beside FILE.npz, what clean-fid reads as dataset_name=NAME with
            dataset_split="custom"; move these two files into its folder stats.
        split: Of a source with splits.
        inception: pt_inception-2015-12-05-6726825d.pth.
        clip: CLIP ViT-B/32.
        cmmd: CLIP ViT-L/14-336.
        dinov2: DINOv2 ViT-L/14.
    """

    from t2i_jax.cluster import processes
    from t2i_jax.config import one_of
    from t2i_jax.data.source import check_split
    from t2i_jax.eval import protocol as protocols
    from t2i_jax.eval import statistics_file
    from t2i_jax.runs.scoring import networks, sources, statistics
    from t2i_jax.runs.scoring.networks import Weights, parse_modes
    from t2i_jax.runs.scoring.split import Share

    one_of("network", network, statistics.LAYERS)
    networks.check_mode(mode, network == "inception", "network")
    files = {"inception": inception, "clip": clip, "cmmd": cmmd, "dinov2": dinov2}
    for name, path in files.items():
        if path is not None and name != network:
            raise UserError(
                f"{name}={str(path)!r} is not read for network={network!r}; leave it out, or give "
                f"--network {name}."
            )
    chosen = None if protocol is None else protocols.protocol(protocol)
    own = ("clean",) if chosen is None or network != "inception" else chosen.modes
    modes = own if mode is None else parse_modes(mode)
    out = paths.new("out", out)
    places = [out, *(statistics_file.of_mode(out, further) for further in modes[1:])]
    for place in places:
        statistics_file.check_new(place)
    with processes.joined():
        spec = sources.source_spec("images", images)
        check_split(spec, split)
        drawn = sources.drawn_size(spec, size, chosen)
        found = sources.SourceImages(spec, "images", drawn, split)
        weights = Weights(**files)
        extractors = networks.build(network, modes, weights)
        for extractor, place in zip(extractors, places, strict=True):
            where = "are already in" if place.exists() else "in"
            told = statistics.write(
                found, extractor, statistics.LAYERS[network], place, chosen, Share.here(),
                keep_features=keep_features, progress=progress("features", "shard"),
                **statistics.extras(extractor, extractors, adm, clean_fid),
            )  # fmt: skip
            if told:
                print(f"{extractor.name}: statistics of {told['count']:,} images {where} {place}")
                measuring.print_left_out("images", told["left_out"])
                measuring.print_left_out("images", told.get("passed_over"), "passed over")
