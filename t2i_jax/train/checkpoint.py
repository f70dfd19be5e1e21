"""Checkpoints: weights, optimiser, data position and recipe of one step in one folder, written whole or not at all."""

from __future__ import annotations

import errno
import logging
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from t2i_jax.errors import UserError
from t2i_jax.types import TrainState

_FOLDER = "checkpoints"
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every file it writes


class Checkpoints:
    """The checkpoints of one run's folder.

    Saving goes on in the background; a save that a crash cuts short is never seen as a checkpoint.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2):
        self.folder = pathlib.Path(workdir).resolve() / _FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("weights", "rest")}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in ("data", "config")}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, data: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts to save; returns as soon as the arrays are copied.

        Raises:
          UserError: the disk is full (this save or the one before it); earlier checkpoints stay.
        """
        if step in self._manager.all_steps():
            return
        weights, rest = _split(state)
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            rest=ocp.args.StandardSave(rest),
            data=ocp.args.JsonSave(dict(data)),
            config=ocp.args.JsonSave(dict(config)),
        )
        self._guard(step, lambda: self._manager.save(step, args=items))

    def wait(self) -> None:
        """Until everything is on disk."""
        self._guard(None, self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self.wait()
        self._manager.close()

    def config(self) -> Mapping[str, Any] | None:
        """The recipe of the newest checkpoint; None without one."""
        return self._newest(lambda step: self._manager.restore(step, args=_only("config")).config)

    def restore(self, abstract: TrainState) -> tuple[TrainState, Mapping[str, Any]] | None:
        """State and data position of the newest readable checkpoint; None without one.

        Args:
          abstract: the state as `jax.ShapeDtypeStruct`s with shardings, those of this start, not of the save.
        """
        weights, rest = jax.eval_shape(_split, abstract)
        weights, rest = (_with_shardings(tree, like) for tree, like in zip((weights, rest), _split_shardings(abstract)))
        items = ocp.args.Composite(
            weights=ocp.args.StandardRestore(weights), rest=ocp.args.StandardRestore(rest), data=ocp.args.JsonRestore()
        )

        def read(step):
            found = self._manager.restore(step, args=items)
            return _join(found.weights, found.rest), found.data

        return self._newest(read, set_aside=True)

    def weights(self) -> Mapping[str, Any] | None:
        """{"params", "ema", "stats"} of the newest readable checkpoint, on one device; None without one."""
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def read(step):
            saved = self._manager.item_metadata(step).weights.tree
            target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), saved)
            found = self._manager.restore(step, args=_only("weights", ocp.args.StandardRestore(target))).weights
            return {"ema": {}, "stats": {}, **found}

        return self._newest(read)

    def _newest(self, read, set_aside=False):
        """What `read` makes of the newest step that it can read; None without any step.

        `set_aside` moves a damaged one out of the way of the save that will come at the same step.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                found = read(step)
            except Exception as error:  # whatever a damaged file makes the libraries raise
                damaged.append((step, error))
                continue
            for broken, error in damaged:
                kept = f"it is kept in {self._set_aside(broken)}" if set_aside else "it stays where it is"
                print(
                    f"the checkpoint of step {broken} can't be read ({_first_line(error)}), {kept}; taking step {step}.",
                    file=sys.stderr,
                )
            return found
        if damaged:
            raise UserError(
                f"checkpoints={str(self.folder)!r} holds none that can be read ({_first_line(damaged[0][1])}); restore "
                "the folder from a copy, or start a new workdir."
            )
        return None

    def _set_aside(self, step):
        home = self.folder.with_name("unreadable")
        home.mkdir(exist_ok=True)
        target = next(home / f"{step}.{i}" for i in range(10_000) if not (home / f"{step}.{i}").exists())
        (self.folder / str(step)).rename(target)
        self._manager.reload()
        return target

    def _guard(self, step, act):
        try:
            act()
        except Exception as error:
            if not _is_full(error):
                raise
            last = max(self.steps(), default=None)
            kept = "there is no earlier checkpoint" if last is None else f"the checkpoint of step {last} stays"
            raise UserError(
                f"the disk of {str(self.folder)!r} is full, step {step if step is not None else ''} was not saved and "
                f"{kept}; free space and start the same command again."
            ) from error


def load_params(workdir: str | pathlib.Path) -> tuple[Mapping[str, Any], Any, Any, Any]:
    """(recipe as a dict, params by group, averages by group, stats) of a run's newest checkpoint.

    Raises:
      UserError: there is none.
    """
    if not (pathlib.Path(workdir) / _FOLDER).is_dir():
        raise UserError(f"run={str(workdir)!r} holds no checkpoint; train it first, or give another folder.")
    checkpoints = Checkpoints(workdir)
    weights = checkpoints.weights()
    if weights is None:
        raise UserError(f"run={str(workdir)!r} holds no finished checkpoint; let it train until the first save.")
    config = checkpoints.config()
    checkpoints.close()
    return config, weights["params"], weights["ema"], weights["stats"]


def _split(state):
    """Weights, which sampling needs, apart from what only training needs; a typed key becomes plain numbers."""
    weights = {"params": state.params, "ema": state.ema, "stats": state.stats}
    weights = {name: tree for name, tree in weights.items() if jax.tree.leaves(tree)}
    key = jax.random.key_data(state.key)
    return weights, {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped, "key": key}


def _split_shardings(abstract):
    whole = abstract.step.sharding
    at = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)
    weights = {"params": at(abstract.params), "ema": at(abstract.ema), "stats": at(abstract.stats)}
    weights = {name: tree for name, tree in weights.items() if jax.tree.leaves(getattr(abstract, name))}
    return weights, {"opt_state": at(abstract.opt_state), "step": whole, "skipped": whole, "key": whole}


def _with_shardings(shapes, shardings):
    return jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, shardings)


def _join(weights, rest):
    weights = {"ema": {}, "stats": {}, **weights}
    return TrainState(key=jax.random.wrap_key_data(rest.pop("key")), **weights, **rest)


def _only(name, how=None):
    return ocp.args.Composite(**{name: how or ocp.args.JsonRestore()})


def _is_full(error):
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
