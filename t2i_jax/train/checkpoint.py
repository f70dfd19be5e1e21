"""Checkpoints: weights, optimiser, data position and recipe of one step in one folder, written
whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import itertools
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils.epath import Path, gpath

from t2i_jax import paths, sharding
from t2i_jax.cluster import processes
from t2i_jax.errors import Preempted, UserError, first_line, is_full
from t2i_jax.terminal import say
from t2i_jax.train import arrays, digests, full_disk, moved
from t2i_jax.train import best as bests
from t2i_jax.train.finishing import Finishing
from t2i_jax.train.reading import Reading, doubt, relisting
from t2i_jax.types import TrainState

FOLDER = "checkpoints"
# Orbax refuses to save an empty item
_EMPTY: Mapping[str, Any] = {"params": {}, "ema": {}, "stats": {}}
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every file it writes
full_disk.hush()
moved.hush()


def _is_news(record):
    """Whether a message of Orbax is not about a file of a step that digests tell of."""
    path = next(iter(record.args or ()), None) if isinstance(record.args, tuple) else None
    is_of_step = isinstance(path, os.PathLike) and os.path.basename(path) == "_CHECKPOINT_METADATA"
    return not (is_of_step and digests.are_in(pathlib.Path(path).parent))


logging.getLogger("absl").addFilter(_is_news)


def _glob(folder, pattern):
    """The result of `glob` below a folder whose own name may hold `[`, `*` or `?`: only the pattern
    is one.

    Merging what the processes saved, Orbax looks for their folders by a pattern.
    """
    return (folder / name for name in glob.iglob(pattern, root_dir=folder))


gpath.PosixGPath.glob = _glob  # pyright: ignore[reportAttributeAccessIssue]


class Checkpoints:
    """The checkpoints of one run's folder.

    Saving goes on in the background; a save that a crash cuts short is never seen as a checkpoint.
    All processes save together, each what its devices hold; each reads by itself. A new checkpoint
    is opened again, and gets its digests, before an earlier one goes; they are compared at restore.

    Args:
      workdir: folder of the run.
      keep: how many checkpoints stay, beside the best by its score; None: only read, nothing in the
        folder is touched.
      metric: of the scores; "": that of the validation with all groups trained; None: that of the
        newest score there is.
      is_of: whether a score that has no metric's name is of `metric`, by the configuration of its
        step; None: none is.

    Raises:
      UserError: the folder is not the same for all processes.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        keep: int | None,
        metric: str | None = None,
        is_of: Callable[[Mapping[str, Any]], bool] | None = None,
    ):
        self.folder = paths.given("workdir", workdir).resolve() / FOLDER
        me = jax.process_index()
        self._keep, self._metric = keep, metric
        self._finishing = Finishing()
        self._writer: Any = None  # Orbax's manager that saves; None: only reading
        if keep is not None:
            processes.once(self._make)
            found = {"finished checkpoints": self._on_disk() if self.folder.is_dir() else None}
            processes.check_same(
                found, f"another folder as workdir={str(workdir)!r}", "give all one that they share"
            )
            self._writer = self._open(create=True, cleanup_tmp_directories=True)
            if metric and is_of is not None:
                with self.full_disk_refused():
                    processes.once(lambda: bests.adopt(self.folder, metric, is_of))
        self._doubtful = bests.doubtful(self.folder)
        self._scores = dict(bests.scores(self.folder, metric, self._doubtful))
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        self._reader = relisting(
            self.folder, lambda: self._open(read_only=True, multiprocessing_options=alone)
        )
        self._reading = Reading(self.folder, metric, self.steps, is_own=self._writer is not None)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, trace):
        """Closes the folder, but not among several processes of which one fails: there a save may
        wait for others that never come.
        """
        if error is None or isinstance(error, Preempted) or jax.process_count() == 1:
            self.close()

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        relisting(self.folder, self._reader.reload)
        return sorted(self._reader.all_steps())

    def best(self) -> tuple[int, float] | None:
        """The (step, score) of the checkpoint with the smallest score; None where none has a
        score.
        """
        step = bests.best_of(self._scores)
        return None if step is None else (step, self._scores[step])

    def add_score(self, step: int, score: float) -> None:
        """Notes the score of a step that is saved already."""
        self._scores[step] = score
        processes.once(lambda: bests.add(self.folder, step, score, self._metric or ""))

    def has_score(self, step: int) -> bool:
        """Whether the checkpoint of a step has a score."""
        return step in self._scores

    def is_best(self, score: float | None) -> bool:
        """Whether a score is better than those of all checkpoints."""
        best = self.best()
        return score is not None and (best is None or score < best[1])

    def save(
        self,
        step: int,
        state: TrainState,
        data: Sequence[Any],
        config: Mapping[str, Any],
        score: float | None = None,
    ) -> None:
        """Starts to save, unless this step is saved already.

        Returns as soon as the arrays are copied.

        Args:
          data: JSON values, the position of the data after this step in each process. config: JSON
            values, what is trained and how. score: of the step's validation, the smaller the
            better; None: it was not validated.

        Raises:
          UserError: the disk is full or what was written can't be read (this save or the one before
            it); earlier checkpoints stay.
        """
        if step in self._writer.all_steps():
            return
        self.wait()
        weights, rest = _split(state)
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            rest=ocp.args.StandardSave(rest),
            data=ocp.args.JsonSave({"positions": data, **self._scored(score)}),
            config=ocp.args.JsonSave(dict(config)),
        )
        if score is not None:
            self._scores[step] = score
        # Without `force` Orbax leaves out a save that comes while another one is still going on.
        with self.full_disk_refused():
            self._writer.save(step, args=items, force=True)
        saved = {"weights": weights, "rest": rest}
        counts = {name: len(jax.tree.leaves(item)) for name, item in saved.items()}
        self._finishing = Finishing(functools.partial(self._finish, step, counts))

    def wait(self) -> None:
        """Waits until everything is on disk and has been looked at.

        Raises:
          UserError: as `save`.
        """
        finishing, self._finishing = self._finishing, Finishing()
        with self.full_disk_refused():
            finishing.wait()

    def close(self) -> None:
        """Waits and lets go of the folder.

        Raises:
          UserError: as `save`.
        """
        with contextlib.ExitStack() as closing:
            for manager in filter(None, (self._reader, self._writer)):
                closing.callback(self._let_go, manager)
            self.wait()

    def restore(
        self, abstract: TrainState, check: Callable[[Mapping[str, Any]], None]
    ) -> tuple[TrainState, Sequence[Any]] | None:
        """The state and data positions of the newest checkpoint that every process can read.

        None without any checkpoint.

        Checkpoints that can't be read are named in a sentence on stderr and moved to
        WORKDIR/unreadable.

        Args:
          abstract: the state as `jax.ShapeDtypeStruct`s with shardings, those of this start, not of
            the save.
          check: is given the stored configuration before any array is read, and may refuse it with
            a UserError.

        Raises:
          UserError: there are checkpoints, and none can be read.
        """
        weights, rest = _split(abstract)
        items = ocp.args.Composite(
            weights=ocp.args.StandardRestore(weights),
            rest=ocp.args.StandardRestore(rest),
            data=ocp.args.JsonRestore(),
        )

        share = (jax.process_index(), jax.process_count())

        def read(step):
            digests.check(self.folder / str(step), share=share)
            check(self._config(step))
            found = self._reader.restore(step, args=items)
            if (saved := int(found.rest["step"])) != step:  # older ones would go for its sake
                raise ValueError(f"it holds step {saved}, under another name")
            # Runs of one process once saved its position alone.
            return _join(found.weights, found.rest), found.data.get("positions") or [
                found.data["position"]
            ]

        found = self._newest(read, processes.first_told)
        if processes.is_first():
            for step, error in self._doubtful.items():
                say(f"{doubt(step, error)} and stays whatever its score was.")
        return found

    def weights(
        self, places: Mapping[str, Any] | None = None, step: int | str | None = None
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """The weights of the newest readable checkpoint: (configuration, {"params", "ema",
        "stats"}), or None.

        Args:
          step: of the checkpoint, a number, or "best": the one with the best validation metric;
            None: the newest.
          places: by group the shardings of its parameters, which are read to their places; None:
            all on the default device.
        """
        device = jax.sharding.SingleDeviceSharding(sharding.default_device())

        def lying(saved, place):
            return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=place)

        def read(step):
            digests.check(self.folder / str(step), ("weights", "config"))
            # of the weights alone: the reader's own `item_metadata` opens every array of the step
            found = ocp.StandardCheckpointHandler().metadata(
                Path(self.folder / str(step) / "weights")
            )
            saved: Any = found.tree
            target = jax.tree.map(lambda entry: lying(entry, device), saved)
            # without an average there is no entry "ema"
            for name in ({"params", "ema"} & set(saved)) if places is not None else ():
                target[name] = {
                    group: jax.tree.map(lying, entries, places[group])
                    for group, entries in saved[name].items()
                }
            items = ocp.args.Composite(weights=ocp.args.StandardRestore(target))
            return self._config(step), {**_EMPTY, **self._reader.restore(step, args=items).weights}

        if step is None:
            return relisting(self.folder, lambda: self._newest(read))
        return relisting(self.folder, lambda: self._reading.chosen(read, step))

    def config(self) -> Mapping[str, Any] | None:
        """The configuration of the newest checkpoint whose configuration can be read, or None.

        No array is read.
        """

        def read(step):
            digests.check(self.folder / str(step), ("config",))
            return self._config(step)

        return relisting(self.folder, lambda: self._newest(read))

    @contextlib.contextmanager
    def full_disk_refused(self) -> Iterator[None]:
        """Turns the many errors of a full disk that happen inside into one UserError."""
        try:
            yield
        except Exception as error:
            if not is_full(error):
                raise
            finished = self._on_disk()
            kept = (
                f"the checkpoint of step {max(finished)} stays"
                if finished
                else "there is no earlier checkpoint"
            )
            raise UserError(
                f"the disk of {str(self.folder)!r} is full, so the newest step was not saved; "
                f"{kept}: free space and start the same command again."
            ) from error

    def _make(self):
        """Makes the folder; what has the name of a step in it, and is none, goes out of the way of
        the save that will come at that step.
        """
        paths.make("workdir", self.folder)
        for path in bests.others_in(self.folder):
            free = self._set_aside(path.name)
            say(f"{str(path)!r} is no folder, so no checkpoint; it is kept in {str(free)!r}.")

    def _let_go(self, manager):
        """Closes one of Orbax's managers; the error of a save, which it raises once more, does not
        take the place of one that is under way.
        """
        under_way = sys.exception()
        try:
            with self.full_disk_refused():
                manager.close()
        except Exception:
            if not isinstance(under_way, Exception):
                raise

    def _finish(self, step, counts):
        """Waits for a save; then it is looked at, and counts, and older ones go.

        Args:
          counts: how many arrays each item has.
        """
        self._writer.wait_until_finished()
        if processes.is_first():
            self._reader.reload()
            try:
                for item, count in counts.items():
                    arrays.check(self.folder / str(step) / item, count)
            except Exception as error:  # whatever what was not written makes the libraries raise
                raise self._unreadable(step, error) from error
        digests.write(self.folder / str(step), jax.process_index())
        if processes.is_first():
            stay = bests.kept(self._on_disk(), self._keep, self._scores, self._doubtful)
            for old in set(self._on_disk()) - stay:
                # under a name that the next start sweeps away
                gone = self.folder / f"{old}.orbax-checkpoint-tmp"
                (self.folder / str(old)).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _scored(self, score):
        return {bests.SCORE: score} | ({bests.SCORE_OF: self._metric} if self._metric else {})

    def _unreadable(self, step, error):
        free = self._set_aside(step)
        before = self._on_disk()
        kept = f"that of step {max(before)} stays" if before else "there is no earlier one"
        return UserError(
            f"the checkpoint of step {step} can't be read back ({first_line(error)}), it is kept "
            f"in {str(free)!r}; {kept}: look at the disk of {str(self.folder)!r}, and start the "
            "same command again."
        )

    def _open(self, **options):
        handlers = {
            "weights": ocp.StandardCheckpointHandler(), "rest": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(), "config": ocp.JsonCheckpointHandler(),
        }  # fmt: skip
        options = ocp.CheckpointManagerOptions(**options)
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def _config(self, step):
        return self._reader.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        ).config

    def _on_disk(self):
        return bests.steps_in(self.folder)

    def _newest(self, read, agree=lambda error: error):
        """The result of `read` for the newest step that it can read, None without any step; newer
        ones, which are damaged, are laid aside.
        """
        newest = self._reading.newest(read, agree)
        if newest is None:
            return None
        step, found, damaged = newest
        for broken, error in damaged:
            self._lay_aside(broken, error, step)
        return found

    def _lay_aside(self, broken, error, taken):
        """Says that a step is damaged, and moves it out of the way of the save that will come at
        the same step.
        """
        sentence = (
            f"the checkpoint of step {broken} can't be read ({error}); step {taken} is taken "
            "instead"
        )
        if self._writer is None:
            say(f"{sentence}.")
            return

        def move():
            free = self._set_aside(broken)
            say(f"{sentence}, the damaged one is kept in {str(free)!r}.")

        processes.once(move)
        self._scores.pop(broken, None)
        self._doubtful.pop(broken, None)
        self._writer.reload()

    def _set_aside(self, step):
        home = self.folder.with_name("unreadable")
        home.mkdir(exist_ok=True)
        names = (home / f"{step}.{i}" for i in itertools.count())
        free = next(path for path in names if not os.path.lexists(path))
        (self.folder / str(step)).rename(free)
        return free


def _split(state):
    """The weights, which sampling needs, apart from the state that only training needs.

    A typed key becomes plain numbers.

    Works on arrays and on their shapes.
    """
    weights = {"params": state.params, "ema": state.ema, "stats": state.stats}
    weights = {name: tree for name, tree in weights.items() if jax.tree.leaves(tree)}
    if isinstance(state.key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, state.key)
        key = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=state.step.sharding)
    else:
        key = jax.random.key_data(state.key)
    return weights, {
        "opt_state": state.opt_state,
        "step": state.step,
        "skipped": state.skipped,
        "key": key,
    }


def _join(weights, rest):
    key = jax.random.wrap_key_data(rest["key"])
    return TrainState(**{**_EMPTY, **weights}, **{**rest, "key": key})
