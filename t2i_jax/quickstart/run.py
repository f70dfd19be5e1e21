"""The quickstart: a tokenizer and Parti on the built-in dataset `shapes`, small enough for two CPU
cores.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Mapping

from t2i_jax import paths, runs
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.errors import UserError
from t2i_jax.eval.evaluation import Evaluation
from t2i_jax.eval.grid import grid
from t2i_jax.files import replacing
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.pixels import png_bytes
from t2i_jax.runs import report
from t2i_jax.runs.evaluation import evaluate
from t2i_jax.runs.folder import part_folders
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.samples import held_out
from t2i_jax.systems.parti.options import PartiOptions
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.text.learned import LearnedText
from t2i_jax.train.log import add_metrics, metrics_of
from t2i_jax.train.loop import TrainConfig
from t2i_jax.train.optim import OptimConfig

_SHOWN = 24  # samples of the report
_TITLE, _SECTION = "t2i_jax quickstart", "Samples for held-out captions"  # of its page
_MARK = "quickstart.json"  # in its folder, says whether it is done: the page others write anew
_MEASURED = {"alignment_heldout", "reconstruction_psnr", "seconds"}  # by a quickstart alone


def finished(workdir: pathlib.Path) -> Mapping[str, float | None] | None:
    """The metrics of a quickstart that is done, None for one that is not finite; None while it is
    not done, or where there is another run.
    """
    workdir = paths.folder("workdir", workdir)
    metrics = metrics_of(workdir) or {}
    if "alignment_heldout" not in metrics or not (workdir / report.REPORT).is_file():
        return None
    marked = _marked(workdir)
    is_done = _was_done(workdir, metrics) if marked is None else marked
    return metrics if is_done else None


def _marked(workdir):
    """Whether a quickstart is marked as done; None where nothing is marked."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return json.loads((workdir / _MARK).read_text())["is_done"] is True
    return None


def _mark(workdir, is_done):
    with replacing(workdir / _MARK) as path:
        path.write_text(json.dumps({"is_done": is_done}))


def _was_done(workdir, metrics):
    """Whether an earlier release, which marked nothing, has done a quickstart: its page says so,
    or, where `t2i eval` or `t2i report` wrote that anew, what was measured and drawn before it.
    """
    with contextlib.suppress(OSError):
        page = (workdir / report.REPORT).read_text(encoding="utf-8", errors="replace")
        if f"<title>{_TITLE}</title>" in page and f"<h2>{_SECTION}</h2>" in page:
            return True
    sheets = (home / "samples" / "heldout.png" for home in (workdir, workdir / "tokenizer"))
    return metrics.keys() >= _MEASURED and all(sheet.is_file() for sheet in sheets)


def _refuse_other(workdir, recipe):
    """Refuses a folder that holds another run, before anything is written there.

    Raises:
      UserError: it does.
    """
    try:
        stored = runs.load_run_recipe(workdir)
    except UserError:  # none is saved yet; what is damaged is for the training to say
        return
    if stored.task != recipe.task or stored.data != recipe.data:
        of = "" if stored.data is None else f" on {stored.data.source!r}"
        raise UserError(
            f"workdir={paths.shown(workdir)} holds another run than a quickstart, a "
            f"{type(stored.task).__name__}{of}; name another folder."
        )


def run(workdir: pathlib.Path) -> Mapping[str, float | None]:
    """Trains, samples held-out captions, judges them and writes WORKDIR/report.html.

    Returns metrics.json, None for a value that is not finite.

    `seconds` counts every start of a run that was stopped in between.
    """
    workdir, recipe = paths.folder("workdir", workdir), get_config()
    _refuse_other(workdir, recipe)
    clock = _Clock(workdir)
    _mark(workdir, False)
    try:
        system = runs.train(recipe, workdir)
        tokenizer = runs.load(workdir / "tokenizer")
        metrics = dict(
            evaluate(runs.load_run_recipe(workdir / "tokenizer"), tokenizer, workdir / "tokenizer")
        )
        metrics |= evaluate(recipe, system, workdir)
        add_metrics(workdir, metrics)
    finally:
        clock.stop()
    _report(recipe, system, workdir)
    _mark(workdir, True)
    return json.loads((workdir / "metrics.json").read_text())


class _Clock:
    """Adds the time from its making to `stop` to `seconds` in metrics.json."""

    def __init__(self, workdir):
        self.workdir, self.start = pathlib.Path(workdir), time.perf_counter()
        paths.make("workdir", self.workdir)

    def stop(self):
        earlier = (metrics_of(self.workdir) or {}).get("seconds", 0.0)
        earlier = earlier if isinstance(earlier, int | float) else 0.0
        add_metrics(self.workdir, {"seconds": earlier + time.perf_counter() - self.start})


def _report(recipe, system, workdir):
    judged = system.judge(held_out(recipe), recipe.evaluation, _SHOWN, seed=1)
    images = [png_bytes(grid(image[None], 1, 128)) for image in judged.images]
    before = [
        "<p>Every caption below asks for what no training image showed: an ordered pair of "
        "objects in a relation, or a small object of a colour and shape that was alone on this "
        "background only when large. The judge is a program that measures colour, form and place "
        "in the pixels; it knows no model of ours.</p>",
        report.samples(_SECTION, images, judged.captions, judged.right),
    ]
    parts = part_folders(workdir, recipe)
    report.write_report(workdir, recipe, parts=parts, title=_TITLE, before=before)


def get_config() -> Recipe:
    """The recipe of `t2i quickstart`: 32 x 32 pixels, 64 tokens of 1024 codes, minutes for each of
    the two stages.
    """
    size = 32
    network = VitVQGanVAE(
        dim=64,
        image_size=size,
        patch_size=4,
        layers=1,
        heads=2,
        codebook_size=1024,
        # pushed to use all codes alike, the tokenizer writes noise that Parti can't predict
        entropy_loss_weight=0.0,
        commitment_weight=0.25,
        pixel_range=(-1.0, 1.0),
    )
    tokenizer = Recipe(
        task=TokenizerTask(model=network, l2_weight=1.0),
        data=DataConfig(source="shapes", image_size=size),
        train=TrainConfig(
            steps=400,
            batch_size=48,
            ema_decay=0.99,
            optim=OptimConfig(
                name="muon",
                learning_rate=3e-3,
                warmup_steps=50,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=1e-4,
            ),
        ),
    )
    text = LearnedText(dim=128, depth=2, heads=4, mlp_dim=512, vocab_size=256, max_length=20)
    return Recipe(
        task=PartiTask(
            model=PartiTransformer(dim=128, depth=4, heads=4, mlp_dim=512),
            text=text,
            tokenizer=network,
        ),
        data=DataConfig(source="shapes", image_size=size),
        train=TrainConfig(
            steps=2400,
            validate_every=300,
            batch_size=32,
            ema_decay=0.998,
            optim=OptimConfig(
                name="muon",
                learning_rate=2e-3,
                warmup_steps=100,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=0.03,
            ),
        ),
        parts={"tokenizer": tokenizer},
        evaluation=Evaluation(
            judge="shapes", pictures=400, options=PartiOptions(guidance=2.0, temperature=0.5)
        ),
    )
