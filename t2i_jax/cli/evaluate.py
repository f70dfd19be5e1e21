"""`t2i evaluate`: numbers of generated images, and `t2i eval RUN`: a trained run measured again."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from t2i_jax import paths
from t2i_jax.cli import arguments as cli
from t2i_jax.cli.arguments import Shown
from t2i_jax.errors import UserError
from t2i_jax.values import Count, Range, Seed, shown
from t2i_jax.words import counted

_Weights = Annotated[pathlib.Path | None, Shown("FILE")]
_Folder = Annotated[pathlib.Path | None, Shown("DIR")]


def evaluate(
    run: pathlib.Path,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    step: Annotated[str | None, Shown("STEP", default="the newest")] = None,
) -> None:
    """Measure a trained run on held-out images or captions.

    Writes metrics.json and samples/heldout.png.

    Args:
        run: Folder of the run.
        overrides: Fields of its evaluation and data to change, as evaluation.pictures=1000
        evaluation.options.guidance=2.0.
        step: The checkpoint: its step, or best, the one with the best validation metric.
    """
    from t2i_jax import runs
    from t2i_jax.cluster import processes
    from t2i_jax.runs.folder import checkpoint_step
    from t2i_jax.runs.recipe import changed

    with processes.joined():
        run = paths.given("run", run)
        _check_overrides(overrides, ("evaluation", "data"))
        recipe = changed(runs.load_run_recipe(run), overrides)
        chosen = checkpoint_step(step)
        metrics = runs.evaluate(recipe, runs.load(run, step=chosen), run, chosen)
        for name, value in metrics.items() if processes.is_first() else ():
            print(f"{name}: {value:.4g}")


def command(words: Sequence[str]) -> None:
    """Measure images against captions and real images: FID, KID, CLIP score and others.

    Args:
      words: what follows `t2i evaluate`; the first may be one of `COMMANDS`.
    """
    if words and words[0] in COMMANDS:
        cli.called(COMMANDS[words[0]], words[1:], f"{_NAME} {words[0]}")
    else:
        cli.called(measure, words, _NAME)


def measure(
    run: Annotated[pathlib.Path | None, Shown("RUN", positional=True)] = None,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    prompts: Annotated[str | None, Shown("SET:FILE")] = None,
    images: Annotated[str | None, Shown("DIR")] = None,
    captions: Annotated[str | None, Shown("FILE")] = None,
    split: Annotated[str | None, Shown("SPLIT", default="heldout")] = None,
    metrics: Annotated[str | None, Shown("NAME,NAME")] = None,
    reference: Annotated[str | None, Shown("DIR|FILE.npz")] = None,
    reference_mode: Annotated[str | None, Shown("MODE")] = None,
    reference_split: Annotated[str | None, Shown("SPLIT", default="heldout")] = None,
    mode: Annotated[str | None, Shown("MODE,MODE", default="clean")] = None,
    protocol: Annotated[str | None, Shown("NAME")] = None,
    count: Annotated[Annotated[int, Range(1, 2**31 - 1)] | None, Shown("N")] = None,
    seed: Annotated[Seed | None, Shown("N", default="0")] = None,
    guidance: Annotated[str | None, Shown("NUMBER,NUMBER")] = None,
    out: Annotated[
        pathlib.Path | None, Shown("DIR", default="RUN/eval/SET, or DIR-eval of --images DIR")
    ] = None,
    inception: _Weights = None,
    clip: _Folder = None,
    cmmd: _Folder = None,
    dinov2: _Folder = None,
    pickscore: _Folder = None,
    hpsv2: _Weights = None,
    mesh: Annotated[str | None, Shown("AXIS=SIZE,...")] = None,
    batch_size: Annotated[Count | None, Shown("N", default="64")] = None,
    shard_size: Annotated[Count | None, Shown("N", default="1000")] = None,
    step: Annotated[str | None, Shown("STEP", default="the newest")] = None,
) -> None:
    """Measure the images of a run for prompts, or those of a folder. Without --prompts and --images
    a run is measured as its recipe says, as t2i eval does it.

    Other commands: t2i evaluate reference, t2i evaluate compare, t2i evaluate tokenizer.

    Args:
        run: Folder of a run, whose images are generated and kept in OUT.
        overrides: Fields of the recipe to change, as evaluation.options.temperature=0.5.
        prompts: Prompts to generate images for: coco:FILE, parti:FILE, geneval:FILE,
            t2i-compbench:FILE, dpg:FOLDER, or a .txt, .tsv, .csv, .jsonl or .json file.
        images: A folder of images in place of a run, or another source, as arrayrecord:DIR.
        captions: Captions of --images: a table with columns file and caption; a .txt with one in
            each line in the order of the names, 9 before 10; or a set as of --prompts, by the names
            that its scorer reads. By default those that lie beside the images.
        split: Of --images that have splits, as hf:NAME.
        metrics: Some of fid, fid_infinity, kid, is, pr (precision, recall), dc (density, coverage),
            clip, clip_hessel, clip_torchmetrics, clip_gigagan, clip_fid, cmmd, fdd, pickscore,
            hpsv2, judge:shapes, judge:digits, judge:compositions.
        reference: Real images to compare with, a folder or another source, or their statistics,
            of which those of a second mode are beside FILE.npz, as FILE-tf.npz.
        reference_mode: How the statistics of a FILE.npz were made, where no JSON beside it says so.
        reference_split: Of a --reference that has splits, as hf:NAME.
        mode: How images are made smaller for Inception: clean, tf, pytorch-fid, torchmetrics,
            t2i-benchmark. A protocol says it itself.
        protocol: A named protocol, which says modes, size, crop and count: coco30k,
            coco30k-gigagan, coco30k-t2ibench, coco30k-dmgan, coco10k-mosaic, imagenet50k.
        count: How many prompts; by default those of the protocol, or all.
        seed: The same seed gives the same images. Without a protocol that chooses the prompts it
            also says which --count of them are drawn from coco:FILE.json.
        guidance: Guidances to measure side by side, as 1.5,3,5.
        out: Folder of plan, images, features and results; the same command goes on there.
        inception: pt_inception-2015-12-05-6726825d.pth.
        clip: CLIP ViT-B/32, a folder of transformers or OpenCLIP.
        cmmd: CLIP ViT-L/14-336.
        dinov2: DINOv2 ViT-L/14.
        pickscore: PickScore v1.
        hpsv2: HPS v2 or v2.1; --clip has its vocabulary.
        mesh: Axes of a mesh of each process's devices, which then share the weights, as
            tensor=4; by default each device has all of them.
        batch_size: Images that are generated at a time, on each device.
        shard_size: Images of a shard, which is written whole or not at all.
        step: The checkpoint: its step, or best.
    """
    given = dict(locals())
    from t2i_jax.cluster import processes
    from t2i_jax.eval import protocol as protocols
    from t2i_jax.runs.scoring.metrics import metric_of, parse_metrics
    from t2i_jax.runs.scoring.networks import Weights, parse_modes
    from t2i_jax.runs.scoring.split import SHARD_SIZE
    from t2i_jax.sharding import parse_mesh

    _check_given(**given)
    if images is None and prompts is None:
        assert run is not None
        evaluate(run, overrides, step)
        return
    chosen = None if protocol is None else protocols.protocol(protocol)
    asked = () if metrics is None else parse_metrics(metrics)
    _check_mode(mode, any(metric_of(name).network == "inception" for name in asked), "metrics")
    settings = {
        "metrics": asked, "modes": parse_modes(mode or "clean"), "protocol": chosen,
        "reference": reference, "reference_mode": reference_mode,
        "reference_split": reference_split,
        "mesh": None if mesh is None else parse_mesh(mesh),
        "batch_size": batch_size or 64, "shard_size": shard_size or SHARD_SIZE,
        "weights": Weights(inception, clip, cmmd, dinov2, pickscore, hpsv2),
    }  # fmt: skip
    with processes.joined():
        if images is not None:
            _measure_images(images, captions, split, settings, out)
        else:
            count = count or (chosen and chosen.count)
            _measure_run(run, overrides, step, prompts, count, seed or 0, guidance, settings, out)


def reference(
    images: Annotated[str, Shown("DIR", positional=True)],
    out: Annotated[pathlib.Path, Shown("FILE.npz", positional=False)],
    network: str = "inception",
    mode: Annotated[str | None, Shown("MODE,MODE", default="those of --protocol, or clean")] = None,
    protocol: Annotated[str | None, Shown("NAME")] = None,
    keep_features: bool = False,
    adm: bool = False,
    clean_fid: Annotated[str | None, Shown("NAME")] = None,
    split: str = "train",
    inception: _Weights = None,
    clip: _Folder = None,
    cmmd: _Folder = None,
    dinov2: _Folder = None,
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
    _check_mode(mode, network == "inception", "network")
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
        size = None if chosen is None else chosen.size
        found = sources.SourceImages(spec, "images", size, split)
        weights = Weights(**files)
        extractors = networks.build(network, modes, weights)
        for extractor, place in zip(extractors, places, strict=True):
            where = "are already in" if place.exists() else "in"
            told = statistics.write(
                found, extractor, statistics.LAYERS[network], place, chosen, Share.here(),
                keep_features=keep_features, progress=_progress("features"),
                **statistics.extras(extractor, extractors, adm, clean_fid),
            )  # fmt: skip
            if told:
                print(f"{extractor.name}: statistics of {told['count']:,} images {where} {place}")
                _tell_left_out("images", told["left_out"])
                _tell_left_out("images", told.get("passed_over"), "passed over")


def tokenizer(
    run: pathlib.Path,
    images: Annotated[str, Shown("DIR", positional=False)],
    out: Annotated[pathlib.Path | None, Shown("DIR", default="RUN/eval/tokenizer")] = None,
    crop: str = "adm",
    mode: Annotated[str | None, Shown("MODE,MODE", default="tf")] = None,
    inception: _Weights = None,
    alex: _Weights = None,
    vgg: _Weights = None,
    batch_size: Count = 32,
    shard_size: Count = 1000,
    split: Annotated[str | None, Shown("SPLIT", default="heldout")] = None,
    step: Annotated[str | None, Shown("STEP", default="the newest")] = None,
) -> None:
    """Measure how well an image tokenizer gives images back: PSNR, SSIM, codebook usage and
    perplexity, rFID with --inception, LPIPS with --alex or --vgg.

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
    from t2i_jax.eval.lpips import lpips
    from t2i_jax.runs.folder import checkpoint_step
    from t2i_jax.runs.scoring import networks, sources
    from t2i_jax.runs.scoring import tokenizer as tokenizers
    from t2i_jax.runs.scoring.split import Share

    run = paths.given("run", run)
    out = paths.folder("out", out or run / "eval" / "tokenizer")
    weights = networks.Weights(inception)
    _check_mode(mode, weights.of("inception") is not None, "inception")
    trunks = {"alex": alex, "vgg": vgg}
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
            {trunk: lpips(trunk, path) for trunk, path in trunks.items() if path is not None},
        )
        share = Share.here()
        results = tokenizers.evaluate(
            run, system, found, measures, out, share, batch_size, _progress("shards"), chosen
        )
        _tell(results, out)


def compare(
    a: Annotated[pathlib.Path, Shown("A", positional=True)],
    b: Annotated[pathlib.Path, Shown("B", positional=True)],
) -> None:
    """Tell whether two results differ by more than chance.

    Args:
        a: Folder of results of t2i evaluate.
        b: Another one, of the same protocol.
    """
    from t2i_jax.eval import compare as comparing
    from t2i_jax.runs.scoring.results import read_results

    first, second = (read_results(paths.given(name, one)) for name, one in (("a", a), ("b", b)))
    found = comparing.compare(
        first.results, second.results, first.values, second.values,
        marks=(first.marks, second.marks),
    )  # fmt: skip
    print(comparing.table(found, _columns(a, b)))


def _columns(a, b):
    """What tells two folders apart: their names, or else their whole paths."""
    for names in ((a.name, b.name), (str(a), str(b))):
        if all(names) and names[0] != names[1]:
            return names
    return "A", "B"


COMMANDS: Mapping[str, Callable[..., None]] = {
    "reference": reference,
    "compare": compare,
    "tokenizer": tokenizer,
}
_NAME = "t2i evaluate"


# what `measure` reads of a run without prompts, and what has no effect on images that are there
_OF_A_RUN = ("run", "overrides", "step")
_OF_PROMPTS = ("count", "guidance", "mesh", "seed", "batch_size", "step")


def _check_given(run, prompts, images, captions, metrics, **others):
    """Refuses what does not go together or would have no effect, before anything is opened.

    Args:
      others: all other arguments of `measure`.
    """
    if (run is None) == (images is None):
        both = "both are" if run is not None else "neither is"
        raise UserError(f"RUN or --images DIR is measured, and {both} given; give one of them.")
    if images is not None and prompts is not None:
        raise UserError(
            f"prompts={prompts!r} is for a run, which generates images; give --captions FILE for "
            "--images."
        )
    if captions is not None and images is None:
        raise UserError(
            f"captions={captions!r} is for --images; give --prompts for a run, which generates "
            "images."
        )
    if others["split"] is not None and images is None:
        raise UserError(
            f"split={others['split']!r} is for --images; leave it out, or give --reference-split."
        )
    if images is not None and metrics is None:
        raise UserError("metrics are missing; give for example --metrics fid,kid.")
    if prompts is None:
        idle = _OF_PROMPTS if run is None else {"metrics", *others}.difference(_OF_A_RUN)
        remedy = "leave it out" if run is None else "give --prompts"
        _refuse_given({"metrics": metrics, **others}, idle, remedy)
    for name in ("reference_mode", "reference_split"):
        if others[name] is not None and others["reference"] is None:
            raise UserError(
                f"{name}={others[name]!r} is nothing without --reference; leave it out or give it."
            )
    if others["protocol"] is not None and others["mode"] is not None:
        raise UserError(
            f"mode={others['mode']!r} is given beside protocol={others['protocol']!r}, which has "
            "its own; leave out one of them."
        )


def _refuse_given(values, idle, remedy):
    """Refuses an argument that has no effect without prompts, where it is given."""
    for name, value in values.items():
        if name in idle and value is not None:
            told = repr(str(value) if isinstance(value, pathlib.Path) else value)
            raise UserError(
                f"{name}={told} is for a run that generates images for prompts; {remedy}."
            )


def _check_overrides(overrides, read):
    """Refuses fields of a recipe that are not read when its run is measured."""
    for override in overrides:
        path = override.partition("=")[0].strip().lstrip("-")
        if not any(path == name or path.startswith(f"{name}.") for name in read):
            told = " and ".join(f"{name}.*" for name in read)
            raise UserError(
                f"{shown(path)} is given for a run that is trained already, of which {told} can be "
                "changed; leave it out."
            )


def _check_mode(mode, uses_inception, where):
    if mode is not None and not uses_inception:
        raise UserError(
            f"mode={shown(mode)} says how images are made smaller for Inception, which {where} "
            "does not ask for; leave it out."
        )


def _measure_images(images, captions, split, settings, out):
    from t2i_jax.eval import prompts as sets
    from t2i_jax.runs.scoring.job import Job, evaluate_source
    from t2i_jax.runs.scoring.sources import source_spec

    spec = source_spec("images", images)
    place = pathlib.Path(spec.partition(":")[2] or spec)
    if place.name in ("", ".."):
        place = pathlib.Path(os.path.abspath(place))
    if out is None and not place.name:
        raise UserError(
            f"images={paths.shown(images)} has no name; give --out DIR for the results."
        )
    job = Job(out=paths.folder("out", out or place.with_name(f"{place.name}-eval")), **settings)
    chosen = None if captions is None else sets.read(captions)
    found = evaluate_source(job, spec, chosen, progress=_progress("features"), split=split)
    _tell(found, job.out)


def _measure_run(run, overrides, step, prompts, count, seed, guidance, settings, out):
    from t2i_jax import runs
    from t2i_jax.cluster import processes
    from t2i_jax.eval import prompts as sets
    from t2i_jax.runs.folder import checkpoint_step
    from t2i_jax.runs.recipe import changed
    from t2i_jax.runs.scoring import sweep
    from t2i_jax.runs.scoring.job import Job, evaluate_run

    run = paths.given("run", run)
    _check_overrides(overrides, ("evaluation.options",))
    recipe = changed(runs.load_run_recipe(run), overrides)
    protocol = settings["protocol"]
    drawn_by = seed if protocol is None else protocol.seed_of_prompts(seed)
    chosen = sets.read(prompts, count, drawn_by)
    job = Job(out=paths.folder("out", out or run / "eval" / chosen.kind), **settings)
    guidances = [] if guidance is None else sweep.parse_guidances(guidance)
    found = evaluate_run(
        job,
        run,
        recipe,
        checkpoint_step(step),
        chosen,
        seed,
        guidances,
        progress=_progress("shards"),
    )
    if not found:
        if processes.is_first():
            print(f"images of {counted(len(chosen), 'prompt')} in {job.out}")
        return
    if len(found) == 1:
        _tell(next(iter(found.values())), job.out)
    elif processes.is_first():
        print("\n".join(sweep.table({one: found[one] for one in found if one is not None})))
        _tell_reference(next(iter(found.values())))


def _tell(results, out):
    if not results:  # not the first process
        return
    for one in results["metrics"]:
        span = one["interval"]
        told = "" if span is None else f" [{span['low']:.4g}, {span['high']:.4g}]"
        against = f" against {one['n_reference']:,}" if one["n_reference"] else ""
        print(f"{one['name']}: {one['value']:.6g}{told} ({one['n_generated']:,} images{against})")
    for name, about in results["generated"].items():
        _tell_left_out(name, about["left_out"])
    images = results["images"].get("of") or results["images"]
    _tell_left_out("images", images.get("passed_over"), "passed over")
    _tell_reference(results)
    print(f"results: {out / 'results.json'}")


def _tell_reference(results):
    """What the reference has left out and passed over, once for all that compare with it."""
    told = [one["reference"] for one in results["metrics"] if one["reference"]]
    for how in ("left out", "passed over") if told else ():
        _tell_left_out("reference", told[0].get(how.replace(" ", "_")), how)


def _tell_left_out(what, counts, how="left out"):
    if counts:
        told = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        print(f"{what}: {how} {told}")


def _progress(what):
    from tqdm import tqdm

    # none where stderr is no terminal
    return functools.partial(tqdm, desc=what, unit="shard", disable=None)
