"""`t2i evaluate`: numbers of generated images, and `t2i eval RUN`: a trained run measured again."""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated

from t2i_jax import paths
from t2i_jax.cli import arguments as cli
from t2i_jax.cli import measuring
from t2i_jax.cli.arguments import Shown
from t2i_jax.cli.measuring import WeightsFile, WeightsFolder
from t2i_jax.cli.progress import progress
from t2i_jax.errors import UserError
from t2i_jax.values import Count, Range, Seed, shown
from t2i_jax.words import counted

_NAME = "t2i evaluate"
_BELOW = ("reference", "compare", "tokenizer")  # commands of its own, each a module of its name


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
        if processes.is_first():
            measuring.print_metrics(metrics)


def command(words: Sequence[str]) -> None:
    """Measure images against captions and real images: FID, KID, CLIP score and others.

    Args:
      words: what follows `t2i evaluate`; the first may be `reference`, `compare` or `tokenizer`.
    """
    if words and words[0] in _BELOW:
        module = importlib.import_module(f"t2i_jax.cli.{words[0]}")
        cli.called(getattr(module, words[0]), words[1:], f"{_NAME} {words[0]}")
    else:
        cli.called(measure, words, _NAME)


def measure(
    run: Annotated[pathlib.Path | None, Shown("RUN", positional=True)] = None,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    prompts: Annotated[str | None, Shown("SET:FILE")] = None,
    images: Annotated[str | None, Shown("DIR")] = None,
    captions: Annotated[str | None, Shown("FILE")] = None,
    split: Annotated[str | None, Shown("SPLIT", default="heldout")] = None,
    grid: Annotated[Count | None, Shown("N", default="1")] = None,
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
    inception: WeightsFile = None,
    clip: WeightsFolder = None,
    cmmd: WeightsFolder = None,
    dinov2: WeightsFolder = None,
    pickscore: WeightsFolder = None,
    hpsv2: WeightsFile = None,
    mesh: Annotated[str | None, Shown("AXIS=SIZE,...")] = None,
    batch_size: Annotated[Count | None, Shown("N", default="64")] = None,
    shard_size: Annotated[Count | None, Shown("N", default="1000")] = None,
    streaming: bool = False,
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
        grid: Images that each file of --images holds: 4 in two rows, as DPG-Bench has them, or 1.
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
            coco30k-gigagan, coco30k-t2ibench, coco30k-dmgan, coco10k-mosaic, imagenet50k,
            tokenizer50k.
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
        streaming: Remove the images of each shard once they are measured, all but the first 64.
        step: The checkpoint: its step, or best.
    """
    given = {**locals(), "streaming": streaming or None}
    from t2i_jax.cluster import processes
    from t2i_jax.eval import protocol as protocols
    from t2i_jax.runs.scoring.metrics import metric_of, parse_metrics
    from t2i_jax.runs.scoring.networks import Weights, check_mode, parse_modes
    from t2i_jax.runs.scoring.split import SHARD_SIZE
    from t2i_jax.sharding import parse_mesh

    _check_given(**given)
    if images is None and prompts is None:
        assert run is not None
        evaluate(run, overrides, step)
        return
    chosen = None if protocol is None else protocols.protocol(protocol)
    asked = () if metrics is None else parse_metrics(metrics)
    check_mode(mode, any(metric_of(name).network == "inception" for name in asked), "metrics")
    settings = {
        "metrics": asked, "modes": parse_modes(mode or "clean"), "protocol": chosen,
        "reference": reference, "reference_mode": reference_mode,
        "reference_split": reference_split,
        "mesh": None if mesh is None else parse_mesh(mesh),
        "batch_size": batch_size or 64, "shard_size": shard_size or SHARD_SIZE,
        "streaming": streaming, "weights": Weights(inception, clip, cmmd, dinov2, pickscore, hpsv2),
    }  # fmt: skip
    with processes.joined():
        if images is not None:
            _measure_images(images, captions, split, grid, settings, out)
        else:
            count = count or (chosen and chosen.count)
            _measure_run(run, overrides, step, prompts, count, seed or 0, guidance, settings, out)


# arguments that `measure` reads of a run without prompts, and those without effect on given images
_OF_A_RUN = ("run", "overrides", "step")
_OF_PROMPTS = ("count", "guidance", "mesh", "seed", "batch_size", "streaming", "step")


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
    if others["grid"] is not None and images is None:
        raise UserError(f"grid={others['grid']} is for --images; leave it out.")
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


def _measure_images(images, captions, split, grid, settings, out):
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
    bar = progress("features", "shard")
    found = evaluate_source(job, spec, chosen, progress=bar, split=split, grid=grid)
    measuring.print_results(found, job.out)


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
    cli.check_said_once(overrides, "evaluation.options.guidance", "guidance", guidance)
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
        progress=progress("shards", "shard"),
    )
    if not found:
        if processes.is_first():
            print(f"images of {counted(len(chosen), 'prompt')} in {job.out}")
        return
    if len(found) == 1:
        measuring.print_results(next(iter(found.values())), job.out)
    elif processes.is_first():
        print("\n".join(sweep.table({one: found[one] for one in found if one is not None})))
        measuring.print_reference(next(iter(found.values())))
