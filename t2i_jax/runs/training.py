"""Training a recipe into a folder: its parts first, then its own task."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from t2i_jax import paths, sharding
from t2i_jax.cluster import lock, main_script, processes
from t2i_jax.config import to_dict
from t2i_jax.data.pipeline import batches
from t2i_jax.data.pipeline import source_of as _source
from t2i_jax.errors import UserError
from t2i_jax.runs import begin, begun, captions, division, stored_text, vocabulary
from t2i_jax.runs import folder as folders
from t2i_jax.runs.captions import captions_of
from t2i_jax.runs.check import check
from t2i_jax.runs.check import check_data as _check_data
from t2i_jax.runs.evaluation import preview_hooks
from t2i_jax.runs.init import Init
from t2i_jax.runs.ledger import DataLedger, image_channels
from t2i_jax.runs.recipe import Recipe, recipe_to_dict
from t2i_jax.runs.report import note_start, write_report
from t2i_jax.runs.samples import held_out
from t2i_jax.runs.validation import validation_of
from t2i_jax.runs.wiring import check_kind, wired
from t2i_jax.systems.base import Given, System, on_device, on_host
from t2i_jax.terminal import say
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.loop import Hook, fit
from t2i_jax.train.profile import Profile
from t2i_jax.train.stored import last_step

Hooks = Callable[[Recipe, Callable[[Any, Any], System]], tuple[Hook, ...]]


def train(
    recipe: Recipe,
    workdir: str | os.PathLike,
    *,
    given: Mapping[str, Given] | None = None,
    hooks: Hooks | None = None,
    profile: Profile | None = None,
    notes: Sequence[str] = (),
) -> System:
    """Trains a recipe into `workdir`, or resumes what is there, and returns the trained system.

    Parts that are recipes are trained first, in WORKDIR/NAME. Several processes train together
    inside `with t2i_jax.cluster.processes.joined():`, with the same recipe and a folder that they
    share; each gets the system.

    Args:
      given: parts that the task inherits by name where its recipe names none.
      hooks: `(recipe, build_system) -> hooks` for the trainer; None: sample grids as
        `recipe.evaluation` says.
      profile: steps of which a trace is written into WORKDIR/profile; not those of a part that is
        trained first.
      notes: sentences that are told on stderr once nothing is refused; settings without an effect
        are told beside them.

    Raises:
      UserError: what was given does not fit together, or the folder holds another run or is in use
        by another process.
      Preempted: SIGTERM arrived; the state was saved first.
    """
    if profile is not None and recipe.train is not None:
        profile.check(recipe.train.steps)
    main_script.check(_workers(recipe))
    workdir = paths.folder("workdir", workdir)
    build = _build_once()  # for the check and for the measuring
    idle = check(recipe, workdir, given=given, build=build)
    for sentence in [*notes, *idle] if processes.is_first() else ():
        say(sentence)
    given = {name: on_host(part) for name, part in (given or {}).items()}
    return on_device(_train(recipe, workdir, given, hooks, build, profile))


def _train(recipe, workdir, given, hooks, build, profile):
    """The system that `train` returns, of a recipe that was checked, with its parts, like `given`,
    in the host's memory.

    A step has on the device what it reads, and not what is trained before or after it.
    """
    processes.check_same(
        recipe_to_dict(recipe), "another recipe", "give every process the same command"
    )
    with lock.held(workdir):
        return _locked(recipe, workdir, given, hooks, build, profile)


def _locked(recipe, workdir, given, hooks, build, profile):
    # parts may train for days before this recipe's own data are read
    if recipe.data is not None and recipe.task.objectives:
        records = {"records": len(_source(recipe.data))}
        source = recipe.data.source
        processes.check_same(
            records, f"other data as data.source={source!r}", "give all the same data"
        )
    recipe, parts = _with_parts(begin.with_parts(recipe, workdir), workdir, given, hooks, build)
    if not recipe.task.objectives:
        processes.once(lambda: folders.write_joined(workdir, recipe))
        processes.once(lambda: note_start(workdir))
        return folders.cutting(recipe.task.system({}, {}, parts, {}, None), recipe)
    return _fit(recipe, workdir, parts, hooks or preview_hooks, build, profile)


def _workers(recipe):
    """The most reader processes that this recipe or one of its parts has."""
    own = 0 if recipe.data is None else recipe.data.workers
    return max(
        [own, *(_workers(part) for part in recipe.parts.values() if isinstance(part, Recipe))]
    )


def _fit(recipe, workdir, parts, hooks, build, profile):
    clock, task, encoder = Goodput.of(workdir), recipe.task, recipe.task.text_encoder
    text_tokenizer = None if encoder is None else _tokenizer(recipe, workdir, parts)
    frozen = task.frozen(parts)
    mesh = sharding.make_mesh(recipe.train.mesh)
    recipe.train.check_batch(mesh)
    _check_data(recipe, parts)
    read = {name: own for name, own in frozen.items() if name not in task.idle_parts}
    placed = sharding.place_frozen(read, mesh, recipe.train.preset)

    def build_system(params, stats, frozen) -> System:
        made = task.system(*sharding.whole((params, stats)), parts, frozen, text_tokenizer)
        return folders.cutting(made, recipe)

    def while_training(params, stats) -> System:
        there = {name: jax.tree.map(_usable, own, frozen[name]) for name, own in placed.items()}
        return build_system(params, stats, {**frozen, **there})

    ledger = DataLedger(text_tokenizer, 0 if encoder is None else encoder.max_length)
    spec = task.batch_spec(1)
    stream = batches(
        recipe.data,
        recipe.train.batch_size,
        recipe.train.seed,
        tokenize=None if text_tokenizer is None else ledger.tokenize,
        wants=tuple(spec),
        text_length=None if encoder is None else encoder.max_length,
        rows=sharding.rows_of_processes(mesh, recipe.train.batch_size),
        process=jax.process_index(),
        channels=image_channels(spec),
    )
    stored_text.note(workdir, recipe, parts, stream.source)
    if last_step(workdir) is None:
        processes.once(lambda: division.note(workdir, recipe.data, stream.source))
    processes.once(lambda: note_start(workdir))
    ledger.begin(recipe.data.source, stream.source, _read_of(spec))
    with ledger.kept(stream, workdir):
        state = fit(
            task,
            stream,
            recipe.train,
            workdir,
            frozen=placed,
            hooks=hooks(recipe, while_training),
            extra_config=recipe_to_dict(recipe),
            allowed=begun.FREE,
            clock=clock,
            profile=profile,
            upgrade=lambda stored: begun.at_hand(begun.of_today(stored), recipe),
            begin=functools.partial(begin.weights, recipe, mesh),
            validation=validation_of(
                recipe, held_out(recipe), mesh, None if text_tokenizer is None else ledger.uncounted
            ),
            monitor=_monitor(recipe, while_training, workdir, build),
        )
    ledger.end(recipe.data.source, stream, workdir)
    write_report(workdir, recipe, parts=folders.part_folders(workdir, recipe))
    return build_system({**state.params, **state.ema}, state.stats, frozen)


def _tokenizer(recipe, workdir, parts):
    """The tokenizer of the run's text encoder; the vocabulary is made when the run begins."""
    words = workdir / folders.TEXT_TOKENIZER
    if os.path.lexists(words) and not words.is_dir():
        raise UserError(
            f"workdir={str(workdir)!r} has a {words.name} that is no folder; put the run's "
            "vocabulary back, or move the file away."
        )
    task, data, seed = recipe.task, recipe.data, recipe.train.seed
    is_new = last_step(workdir) is None
    if task.trains_vocabulary and not is_new:
        vocabulary.check_kept(workdir)
    if is_new:
        made_of = _vocabulary_of(recipe, parts)
        processes.once(lambda: vocabulary.begin(workdir, made_of))
    processes.once(lambda: begin.vocabulary(recipe, words))
    processes.once(lambda: task.prepare_text(words, lambda: captions_of(data, seed), parts))
    if is_new:
        processes.once(lambda: vocabulary.note(workdir))
        processes.once(lambda: captions.check(data, seed, task.text_encoder, workdir))
    return vocabulary.load(workdir, task.text_encoder)


def _vocabulary_of(recipe, parts):
    """What decides of which words a vocabulary is made, as JSON values."""
    init = recipe.init.run if isinstance(recipe.init, Init) else None
    return {
        "data": to_dict(recipe.data),
        "records": len(_source(recipe.data)),
        "seed": recipe.train.seed,
        "encoder": to_dict(recipe.task.text_encoder),
        "init": init and {"run": init, "files": vocabulary.digests(paths.given("init", init))},
        "parts": {name: part.fingerprint for name, part in parts.items()},
    }


def _usable(placed, own):
    """An array that this process can use alone: the one that the step has, or the whole one."""
    alone = placed.is_fully_addressable or placed.is_fully_replicated
    return sharding.whole(placed) if alone else own


def _build_once():
    """A form of `networks.build_once` that is loaded when the first network is asked for: most runs
    do without metrics.
    """
    made = []

    def build(*which):
        from t2i_jax.runs.scoring import networks

        if not made:
            made.append(networks.build_once())
        return made[0](*which)

    return build


def _monitor(recipe, build_system, workdir, build):
    """The metrics of images that are taken while it trains; None where the recipe has none."""
    if recipe.evaluation.every is None:
        return None
    # with the networks of all metrics, which most runs do without
    from t2i_jax.runs.scoring.monitoring import monitor_of

    return monitor_of(recipe, held_out(recipe), build_system, workdir, build)


def _read_of(spec):
    """The entries of a record that are read for a batch."""
    return ("image",) * ("image" in spec) + ("caption",) * ("text" in spec)


def _told_of_unread(task):
    """A sentence for each network that reads fewer tokens of a caption than the text encoder."""
    encoder = task.text_encoder
    most = 0 if encoder is None else encoder.max_length
    for name, length in task.text_lengths.items():
        if length < most:
            yield (
                f"{name} reads {length} tokens of a caption (max_text_len), and the text encoder "
                f"gives it up to {most}; the rest of a longer caption is cut"
            )


def _told_of_micro_batches(recipe):
    """A sentence where gradient accumulation changes what a loss compares."""
    train = recipe.train
    if recipe.task.compares_rows and train is not None and train.accumulate > 1:
        size, rows = train.batch_size, train.batch_size // train.accumulate
        yield (
            f"train.accumulate={train.accumulate}: the loss compares the rows of a batch with each "
            f"other, here the {rows} of a micro-batch, not all train.batch_size={size}"
        )


def _with_parts(recipe, workdir, given, hooks, build):
    """The recipe with its parts' networks, and the parts: trained, adopted or inherited, and the
    same as at first.
    """
    recorded = folders.recorded_parts(workdir)

    def resolve(name, part, source, given):
        folder = workdir / name
        if isinstance(source, str):
            return _adopted(name, part, source, folder)
        return on_host(folders.given(_train(source, folder, given, hooks, build, None), folder))

    asked = recipe.task
    recipe, parts = wired(recipe, given, resolve)
    told = (
        *asked.without(parts), *_told_of_unread(recipe.task), *_told_of_micro_batches(recipe)
    )  # fmt: skip
    for sentence in told if processes.is_first() else ():
        say(sentence)
    parts = {name: _identified(part) for name, part in parts.items()}
    for name, part in parts.items():
        before = recorded.get(name, {}).get("fingerprint", part.fingerprint)
        if before != part.fingerprint:
            raise UserError(
                f"parts.{name} has other weights than this run was begun with (fingerprint "
                f"{part.fingerprint}, was {before}); give the same ones, or train into a new "
                "folder."
            )
    told = {
        name: {
            "folder": part.home and os.path.relpath(part.home, workdir),
            "fingerprint": part.fingerprint,
        }
        for name, part in parts.items()
    }
    if told:
        processes.once(lambda: told == recorded or folders.record_parts(workdir, told))
    return recipe, parts


def _identified(part):
    return (
        part
        if part.fingerprint
        else dataclasses.replace(part, fingerprint=folders.fingerprint(part.weights))
    )


def _adopted(name, part, source, folder):
    """A part that is a finished run: a copy of it in this run's folder, which is complete in
    itself.
    """
    is_new = not processes.gather(folder.is_dir())[0]
    if is_new:
        check_kind(name, part, folders.load_run_recipe(source).task)
        processes.once(lambda: folders.export(source, folder))
    found = on_host(_identified(folders.part_in(folder)))
    check_kind(name, part, found.system.task)
    home = paths.given(f"parts.{name}", source)
    if not is_new and home.is_dir():
        theirs = folders.fingerprint(folders.part_in(home).weights)
        if found.fingerprint != theirs:
            raise UserError(
                f"parts.{name}={source!r} has other weights (fingerprint {theirs}) than this run "
                f"was begun with ({found.fingerprint}); give {str(folder)!r}, or train into a new "
                "folder."
            )
    return found
