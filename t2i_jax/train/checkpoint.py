"""Checkpoints: weights, optimiser, data position and recipe of one step in one folder, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from t2i_jax.errors import UserError
from t2i_jax.types import TrainState

_FOLDER = "checkpoints"
_EMPTY: Mapping[str, Any] = {"params": {}, "ema": {}, "stats": {}}  # Orbax refuses to save an empty item
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every file it writes


class Checkpoints:
    """The checkpoints of one run's folder.

    Saving goes on in the background; a save that a crash cuts short is never seen as a checkpoint.

    Args:
      workdir: folder of the run.
      keep: how many checkpoints stay; None: only read, nothing in the folder is touched.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int | None):
        self.folder = pathlib.Path(workdir).resolve() / _FOLDER
        self._owns = keep is not None
        if self._owns:
            self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, read_only=not self._owns, create=self._owns, cleanup_tmp_directories=self._owns
        )
        handlers = {
            "weights": ocp.StandardCheckpointHandler(), "rest": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(), "config": ocp.JsonCheckpointHandler(),
        }  # fmt: skip
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, data: Any, config: Mapping[str, Any]) -> None:
        """Starts to save, unless this step is saved already; returns as soon as the arrays are copied.

        Args:
          data: JSON values, the position of the data after this step. config: JSON values, what is trained and how.

        Raises:
          UserError: the disk is full (this save or the one before it); earlier checkpoints stay.
        """
        if step in self._manager.all_steps():
            return
        weights, rest = _split(state)
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            rest=ocp.args.StandardSave(rest),
            data=ocp.args.JsonSave({"position": data}),
            config=ocp.args.JsonSave(dict(config)),
        )
        # Without `force` Orbax leaves out a save that comes while another one is still going on.
        with self.full_disk_refused():
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Until everything is on disk."""
        with self.full_disk_refused():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(
        self, abstract: TrainState, check: Callable[[Mapping[str, Any]], None]
    ) -> tuple[TrainState, Any] | None:
        """State and data position of the newest readable checkpoint; None without any checkpoint.

        Checkpoints that can't be read are named in a sentence on stderr and moved to WORKDIR/unreadable.

        Args:
          abstract: the state as `jax.ShapeDtypeStruct`s with shardings, those of this start, not of the save.
          check: is given the stored configuration before any array is read, and may refuse it with a UserError.

        Raises:
          UserError: there are checkpoints, and none can be read.
        """
        weights, rest = _split(abstract)
        items = ocp.args.Composite(
            weights=ocp.args.StandardRestore(weights), rest=ocp.args.StandardRestore(rest), data=ocp.args.JsonRestore()
        )

        def read(step):
            check(self._config(step))
            found = self._manager.restore(step, args=items)
            return _join(found.weights, found.rest), found.data["position"]

        return self._newest(read)

    def weights(self) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """(configuration, {"params", "ema", "stats"} on one device) of the newest readable checkpoint, or None."""
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def read(step):
            saved = self._manager.item_metadata(step).weights.tree
            target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), saved)
            items = ocp.args.Composite(weights=ocp.args.StandardRestore(target))
            return self._config(step), {**_EMPTY, **self._manager.restore(step, args=items).weights}

        return self._newest(read)

    def config(self) -> Mapping[str, Any] | None:
        """The configuration of the newest checkpoint whose configuration can be read, or None; no array is read."""
        return self._newest(self._config)

    @contextlib.contextmanager
    def full_disk_refused(self) -> Iterator[None]:
        """Turns the many errors of a full disk that happen inside into one UserError."""
        try:
            yield
        except Exception as error:
            if not _is_full(error):
                raise
            finished = [int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit()]
            kept = f"the checkpoint of step {max(finished)} stays" if finished else "there is no earlier checkpoint"
            raise UserError(
                f"the disk of {str(self.folder)!r} is full, so the newest step was not saved; {kept}: free space and "
                "start the same command again."
            ) from error

    def _config(self, step):
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore())).config

    def _newest(self, read):
        """What `read` makes of the newest step that it can read; None without any step."""
        damaged = []
        for step in reversed(self.steps()):
            try:
                found = read(step)
            except UserError:
                raise
            except Exception as error:  # whatever a damaged file makes the libraries raise
                damaged.append((step, error))
                continue
            for broken, error in damaged:
                print(self._lay_aside(broken, error, step), file=sys.stderr)
            return found
        if damaged:
            raise UserError(
                f"checkpoints={str(self.folder)!r} holds none that can be read ({_first_line(damaged[0][1])}); restore "
                "the folder from a copy, or start a new workdir."
            )
        return None

    def _lay_aside(self, broken, error, taken):
        """Moves a damaged step out of the way of the save that will come at the same step."""
        why = _first_line(error)
        sentence = f"the checkpoint of step {broken} can't be read ({why}); step {taken} is taken instead"
        if not self._owns:
            return f"{sentence}."
        if jax.process_index() == 0:
            home = self.folder.with_name("unreadable")
            home.mkdir(exist_ok=True)
            free = next(home / f"{broken}.{i}" for i in itertools.count() if not (home / f"{broken}.{i}").exists())
            (self.folder / str(broken)).rename(free)
            sentence += f", the damaged one is kept in {str(free)!r}"
        self._manager.reload()
        return f"{sentence}."


def load_params(workdir: str | pathlib.Path) -> tuple[Mapping[str, Any], Any, Any, Any]:
    """(configuration as a dict, params by group, averages by group, stats) of a run's newest checkpoint.

    The run may still be going on; its folder is only read.

    Raises:
      UserError: there is none.
    """
    config, weights = _read_only(workdir, Checkpoints.weights)
    return config, weights["params"], weights["ema"], weights["stats"]


def load_config(workdir: str | pathlib.Path) -> Mapping[str, Any]:
    """The configuration of a run's newest checkpoint, as a dict.

    Raises:
      UserError: there is none.
    """
    return _read_only(workdir, Checkpoints.config)


def _read_only(workdir, read):
    if not (pathlib.Path(workdir) / _FOLDER).is_dir():
        raise UserError(f"run={str(workdir)!r} holds no checkpoint; train it first, or give another folder.")
    checkpoints = Checkpoints(workdir, keep=None)
    found = read(checkpoints)
    checkpoints.close()
    if found is None:
        raise UserError(f"run={str(workdir)!r} holds no finished checkpoint; let it train until the first save.")
    return found


def _split(state):
    """Weights, which sampling needs, apart from what only training needs; a typed key becomes plain numbers.

    Works on arrays and on their shapes.
    """
    weights = {"params": state.params, "ema": state.ema, "stats": state.stats}
    weights = {name: tree for name, tree in weights.items() if jax.tree.leaves(tree)}
    if isinstance(state.key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, state.key)
        key = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=state.step.sharding)
    else:
        key = jax.random.key_data(state.key)
    return weights, {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped, "key": key}


def _join(weights, rest):
    key = jax.random.wrap_key_data(rest["key"])
    return TrainState(**{**_EMPTY, **weights}, **{**rest, "key": key})


def _is_full(error):
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = any(sentence in str(error) for sentence in ("No space left on device", "Disk quota exceeded"))
    return said or (error.__cause__ is not None and _is_full(error.__cause__))


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
