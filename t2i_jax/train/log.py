"""The log of a run: a progress line, WORKDIR/metrics.jsonl, TensorBoard events and, if wanted,
Weights & Biases.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from t2i_jax.errors import UserError, first_line, reason
from t2i_jax.files import read_object, read_regular, replacing, set_aside
from t2i_jax.terminal import say

METRICS = "metrics.json"
_MOST = 2**26  # bytes of a file that is read whole
WANDB_ID = "wandb_id.txt"  # a run's id in Weights & Biases, kept when it resumes
_LOGINS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DISABLED")
_LOCAL = ("offline", "disabled", "dryrun")  # modes in which nothing is sent
_ID = re.compile(r"([\w-]+)\n?")
_NO_TAG = re.compile(r"[^-/\w.]")  # what TensorBoard does not take in the name of a scalar
_FLUSH_EVERY = 10.0  # seconds between two writings of events to the disk
# what is left, and how fast it goes, `Pace` knows: tqdm would count compiling and hooks as steps
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
_OFTEN, _SELDOM = 1.0, 30.0  # seconds between two looks at a clock: on a terminal, in a file


class Log:
    """Writes metrics; only process 0 does. A disk that refuses them, or Weights & Biases, costs
    metrics, not the run.

    Attributes:
      workdir: folder of the run.
    """

    def __init__(
        self, workdir: pathlib.Path, start: int, steps: int, wandb_project: str | None = None
    ):
        self.workdir = workdir
        self._speaks = jax.process_index() == 0
        if not self._speaks:
            return
        self._complained, self._file, self._events = False, None, None
        self._refused, self._wandb = False, None
        check_wandb(wandb_project)
        if wandb_project:
            with self._sending():
                self._wandb = _start_wandb(wandb_project, workdir)
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc=" ".join(workdir.name.split()),
            bar_format=_BAR,
            disable=sys.stderr is None,
        )
        path = workdir / "metrics.jsonl"
        with self._forgiving():
            _make_room(workdir)
            if self._wandb is not None:
                _replace(workdir / WANDB_ID, f"{self._wandb.id}\n")
            _forget_after(path, start)
            self._file = path.open("a")
            self._events = _Events(workdir, start)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics of a step; a value that is not finite is null in metrics.jsonl and left
        out elsewhere.
        """
        if not self._speaks:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        with self._forgiving():
            if self._file is not None:
                line = {"step": step, **dict.fromkeys(metrics), **finite}
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            if self._events is not None:
                self._events.write(step, finite)
        if self._wandb is not None:
            with self._sending():
                self._wandb.log(finite, step=step)

    def summary(self, metrics: Mapping[str, float], replaces: str | None = None) -> None:
        """Merges metrics of the whole run into WORKDIR/metrics.json, as `add_metrics`."""
        if self._speaks:
            with self._forgiving():
                add_metrics(self.workdir, metrics, replaces)

    def holds(self, step: int, names: Sequence[str]) -> bool:
        """Whether an earlier start, or this one, wrote metrics of these names of a step; False in a
        process that does not write.
        """
        return self._speaks and set(names) <= self._written(step).keys()

    def holds_not_finite(self, step: int, name: str) -> bool:
        """Whether an earlier start, or this one, wrote this metric of a step with a value that was
        not finite.
        """
        return self._speaks and self._written(step).get(name, 0.0) is None

    def _written(self, step):
        """The metrics of a step by name, None for what was not finite."""
        found = {}
        with contextlib.suppress(OSError):
            for line in (self.workdir / "metrics.jsonl").read_text(errors="replace").splitlines():
                if _step_of(line) == step:
                    found |= json.loads(line)
        return found

    def store(self, name: str, values: Any) -> None:
        """Writes JSON values as a file of the run's folder, for the next start."""
        if self._speaks:
            with self._forgiving():
                _replace(self.workdir / name, json.dumps(values))

    def progress(self, step: int, shown: Mapping[str, float | str]) -> None:
        """Moves the progress line to a step and shows these values."""
        if self._speaks:
            with self._shown_or_not():
                self._bar.set_postfix(shown, refresh=step == self._bar.n)
                self._bar.update(step - self._bar.n)

    @contextlib.contextmanager
    def compiling(self, usual: float | None) -> Iterator[None]:
        """Shows on the progress line that something is compiled, and for how long by now.

        Args:
          usual: seconds that it took before; None: that is not known, and not told.
        """
        if not self._speaks:
            yield
            return
        told = "compiling" + (f" (usually {math.ceil(usual)} s)" if usual else "")
        begin, over = time.monotonic(), threading.Event()
        often = _OFTEN if sys.stderr is not None and sys.stderr.isatty() else _SELDOM

        def show():
            while True:
                with contextlib.suppress(OSError, ValueError):  # nobody reads it
                    self._bar.set_postfix_str(f"{told}: {time.monotonic() - begin:.0f} s")
                if over.wait(often):
                    return

        clock = threading.Thread(target=show, name="clock", daemon=True)
        clock.start()
        try:
            yield
        finally:
            over.set()
            clock.join()
            with contextlib.suppress(OSError, ValueError):
                self._bar.set_postfix_str("")

    def say(self, sentence: str) -> None:
        """Prints a sentence above the progress line."""
        if self._speaks:
            with self._shown_or_not():
                tqdm.write(sentence, file=sys.stderr)

    def close(self) -> None:
        """Finishes the files."""
        if not self._speaks:
            return
        with self._shown_or_not():
            self._bar.close()
        for file in filter(None, (self._file, self._events)):
            with self._forgiving():
                file.close()
        if self._wandb is not None:
            with self._sending():
                self._wandb.finish()

    @contextlib.contextmanager
    def _shown_or_not(self):
        """A context in which a stderr that is closed, full or read by nobody costs the progress
        line, not the run.
        """
        try:
            yield
        except (OSError, ValueError):
            self._bar.disable = True

    @contextlib.contextmanager
    def _sending(self):
        """A context in which an error of Weights & Biases costs what is sent there, not the run."""
        try:
            yield
        except Exception as error:
            if not self._refused:
                say(
                    f"metrics can't be sent to Weights & Biases ({first_line(error)}); training "
                    "goes on without that."
                )
            self._refused = True

    @contextlib.contextmanager
    def _forgiving(self):
        try:
            yield
        except OSError as error:
            if not self._complained:
                self.say(
                    f"metrics can't be written to {str(self.workdir)!r} ({reason(error)}); "
                    "training goes on without them."
                )
            self._complained = True


def add_metrics(
    workdir: str | pathlib.Path, metrics: Mapping[str, float], replaces: str | None = None
) -> None:
    """Merges metrics into WORKDIR/metrics.json; a value that is not finite is null there, as JSON
    has no number for it.

    The file is replaced whole, never left half written.

    Args:
      replaces: the beginning of the names of those metrics that the new ones take the place of; the
        others stay, unless they have a new value. None: all of them do.
    """
    path = pathlib.Path(workdir) / METRICS
    old = metrics_of(workdir)
    if old is None:
        _set_aside(path, "holds no metrics")
        old = {}
    kept = {name: old[name] for name in old if replaces is None or not name.startswith(replaces)}
    merged = _finite({**kept, **metrics})
    _replace(path, json.dumps(merged, indent=1, sort_keys=True, allow_nan=False) + "\n")


def metrics_of(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """The metrics in WORKDIR/metrics.json, None for a value that is not finite: {} where there is
    none, None where it is damaged or something else.
    """
    path = pathlib.Path(workdir) / METRICS
    if not os.path.lexists(path):
        return {}
    found = read_object(path)
    return None if found is None else {name: _finite(value) for name, value in found.items()}


def _finite(value):
    """A JSON value with None for every number that is not finite."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder in a run's folder; something else of its name is set aside."""
    if os.path.lexists(path) and not path.is_dir():
        _set_aside(path, "is not a folder")
    path.mkdir(parents=True, exist_ok=True)


def make_room(path: pathlib.Path) -> None:
    """Sets aside an entry that has the name of a file of the run, and is something else."""
    if os.path.lexists(path) and not path.is_file():
        _set_aside(path, "is not a file")


def _make_room(workdir):
    """Sets aside an entry that has the name of a file or a folder of ours, and is something
    else.
    """
    for name in ("metrics.jsonl", METRICS, "goodput.json"):
        make_room(workdir / name)


def _set_aside(path, why):
    free = set_aside(path)
    say(f"{str(path)!r} {why}: it is kept as {free.name!r}, and a new one is begun.")


class _Events:
    """A TensorBoard event file, written by the caller's own thread: a writer's thread would die of
    a full disk.
    """

    def __init__(self, workdir, start):
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventsWriter(os.path.abspath(workdir / "events"), f".{start}.{os.getpid()}")
        # TensorBoard forgets what an earlier start wrote of the steps that now come again.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(start + 1, session_log=session)
        self._flushed = time.monotonic()

    def write(self, step, metrics):
        for name, value in metrics.items():
            scalar = self._summary.Value(tag=_NO_TAG.sub("_", name), simple_value=float(value))
            self._write(step, summary=self._summary(value=[scalar]))
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self):
        self._writer.close()

    def _write(self, step, **what):
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **what))


@contextlib.contextmanager
def _without_torch():
    """A context in which modules of tensorboardX are imported without what its `__init__` imports:
    that takes seconds where PyTorch is installed. Whoever imports it later gets all of it.
    """
    name = "tensorboardX"
    found = importlib.util.find_spec(name)
    if name in sys.modules or found is None:
        yield
        return
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = list(found.submodule_search_locations or ())
    try:
        yield
    finally:
        for module in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[module]


def _forget_after(path, start):
    """Removes the log's lines after step `start`: a run that resumes from an earlier checkpoint
    does these steps again.
    """
    if not path.is_file():
        return
    text = path.read_bytes().decode(errors="surrogateescape")
    lines = re.findall(r"[^\n]*\n", text)  # what a crash has torn has no end
    kept = [line for line in lines if _step_of(line) <= start]
    if math.inf in map(_step_of, lines) or (text and not lines and not text.startswith("{")):
        _set_aside(path, "holds lines that are no metrics")
        text = ""
    if "".join(kept) != text:
        _replace(path, "".join(kept))


def _replace(path, text):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def _step_of(line):
    """The step of a line; infinity for a line that is none of ours."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def check_wandb(project: str | None) -> None:
    """Refuses a project of Weights & Biases where the package is not installed, or would ask for a
    login when the run begins.

    Raises:
      UserError: it is not, or would.
    """
    if project is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"train.wandb_project={project!r} needs Weights & Biases; pip install "
            "'t2i_jax[wandb]', or set it to None."
        )
    if not _has_login():
        raise UserError(
            f"train.wandb_project={project!r} needs a login to Weights & Biases, and there is "
            "none; run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline to send nothing, or "
            "set it to None."
        )


def _has_login():
    """Whether Weights & Biases has a key, or is told to send nothing; where it does not tell, it
    is taken to have one.
    """
    mode, given = os.environ.get("WANDB_MODE"), (os.environ.get(name) for name in _LOGINS)
    if mode in _LOCAL or any(given):
        return True
    try:
        import wandb

        # of its settings or a .netrc; and the mode, as `wandb offline` has set it
        return bool(wandb.api.api_key) or wandb.setup().settings.mode in _LOCAL
    except Exception:  # another release; if it has none, the log says so
        return True


def _start_wandb(project, workdir):
    """The run in Weights & Biases: the one of the workdir where it has one, else a new one."""
    import wandb

    known = None
    with contextlib.suppress(OSError, ValueError):
        known = _ID.fullmatch(read_regular(workdir / WANDB_ID, _MOST).decode("ascii"))
    return wandb.init(
        project=project,
        name=workdir.name,
        dir=str(workdir),
        id=known and known[1],
        resume="allow",
    )
