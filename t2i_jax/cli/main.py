"""`t2i`: the command line. Every command is a thin function.

A user's mistake prints one sentence and exits with 2.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Mapping

from t2i_jax import __version__, heap
from t2i_jax.cluster import signals
from t2i_jax.errors import Preempted, UserError, is_full, reason
from t2i_jax.paths import shown
from t2i_jax.terminal import forgive


def start() -> None:
    """Entry point of the console script.

    Tracing a network makes millions of objects that stay: Python looks for garbage among them less
    often than it would.
    """
    gc.set_threshold(5_000, 10, 10)
    main(alone(_run))


def main(run: Callable[[list[str]], None] | None = None) -> None:
    """Runs the command that `sys.argv` names.

    Args:
      run: what to do with its words; None: they are a command of `t2i`.

    Exit status: 0 done; 2 a mistake in what was given (one sentence says which); 75 stopped by
    SIGTERM, SIGHUP or SIGINT after saving, the same command resumes; 130, 143, 129 ended at once by
    SIGINT (the second one where something is saved), SIGTERM or SIGHUP; 1 anything else, with a
    stack trace.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # XLA's own log, which asks a user to file a bug when it compiles for long; errors are raised
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    forgive()
    try:
        with signals.interrupting():
            (run or _run)(sys.argv[1:])
    except (UserError, Preempted) as error:
        print(f"t2i: {_cut(str(error))}", file=sys.stderr)
        _leave(error.status)
    except Exception as error:
        is_unwritten = is_full(error) or getattr(error, "errno", None) == errno.EROFS
        sentence = _unwritten(error) if is_unwritten else _without_device(error)
        if sentence is None:
            raise
        print(f"t2i: {sentence}", file=sys.stderr)
        _leave(UserError.status)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        why = "interrupted" if number == signal.SIGINT else f"stopped by {signals.name(number)}"
        print(f"\nt2i: {why}; what was saved before stays.", file=sys.stderr)
        _leave(128 + number)


def _leave(status):
    """Ends the process; beside the compiler, which nothing stops, only at once."""
    background = sys.modules.get("t2i_jax.train.background")
    if background is None or not background.is_compiling():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _unwritten(error):
    where = getattr(error, "filename", None)
    named = "a file" if where is None else shown(where)
    remedy = "free space" if is_full(error) else "look at its disk, or name another place"
    return f"{named} can't be written ({reason(error)}); {remedy}, and start again."


def _without_device(error):
    """A sentence where JAX finds no device of JAX_PLATFORMS; None for any other error."""
    asked = os.environ.get("JAX_PLATFORMS")
    frames = traceback.extract_tb(error.__traceback__)
    # JAX says so, but of cuda, where an assertion fails as it looks for the platform
    is_of_jax = bool(frames) and pathlib.PurePath(frames[-1].filename).name == "xla_bridge.py"
    if not asked or not (is_of_jax or "Unable to initialize backend" in str(error)):
        return None
    return f"JAX_PLATFORMS={asked!r} has no device here; set it to cpu, or unset it."


def alone(run: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """`run` for a process of its own, which keeps the memory that it frees; help and version need
    no JAX, which that imports.
    """

    def kept(words):
        if not {"--help", "-h", "--version"} & set(words):
            heap.keep_freed_memory()
        run(words)

    return kept


def _cut(sentence):
    """A sentence without the middle of what a user gave, where that was endless."""
    return sentence if len(sentence) <= 1200 else f"{sentence[:800]} ... {sentence[-300:]}"


def _run(words):
    from t2i_jax.cli.arguments import called, nearest

    for number, word in enumerate(words, 1):
        # what is no UTF-8 on the command line comes as halves of letters
        if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
            told = ascii(word.encode("utf-8", "surrogateescape"))[1:]
            raise UserError(f"argument {number}, {told}, is not text in UTF-8; write it so.")
    name, found = "t2i", COMMANDS
    while isinstance(found, Mapping):
        if not words:
            raise UserError(f"{name} needs a command: {', '.join(found)}; see {name} --help.")
        word, *words = words
        if word in ("--help", "-h"):
            print(_overview(name, found))
            return
        if word == "--version" and name == "t2i":
            print(f"t2i_jax {__version__}")
            return
        if word not in found:
            known = [*found, "--help", *(["--version"] if name == "t2i" else [])]
            raise UserError(f"{word!r} is no command of {name}; {nearest(word, known)}")
        name, found = f"{name} {word}", found[word]
    _check_folder()
    start_cache()
    command = _function(found)
    # the options of the one are those of the run that is named, the other has commands below it
    if name in ("t2i sample", "t2i evaluate"):
        command(words)
    else:
        called(command, words, name)


# By name the function of each command, as MODULE:FUNCTION, or the commands below it. A command
# imports its own module alone, and what it works with when it begins: help needs neither.
COMMANDS: Mapping[str, str | Mapping[str, str]] = {
    "quickstart": "quickstart:quickstart",
    "config": "config:show",
    "train": "train:train",
    "sample": "sample:command",
    "evaluate": "evaluate:command",
    "eval": "evaluate:evaluate",
    "report": "report:report",
    "export": "export:export",
    "data": {
        "inspect": "data:inspect",
        "pack": "data:pack",
        "encode-text": "data:encode_text",
        "encode-images": "tokens:encode_images",
        "encode-clip": "embeddings:encode_clip",
    },
    "convert": {"from-torch": "convert:from_torch", "to-torch": "convert:to_torch"},
    "compile": "compile:compile_for",
}


def _function(home: str) -> Callable[..., None]:
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(f"t2i_jax.cli.{module}"), name)


_ABOUT = {  # of those that hold further commands
    "t2i": "Text-to-image models in JAX: train them, sample from them, convert their weights.",
    "t2i data": "Look at data, pack it, and store embeddings and tokens beside it.",
    "t2i convert": "Weights from and to the PyTorch packages.",
}


def _overview(name, commands):
    from t2i_jax.cli import docstring

    lines = [f"usage: {name} COMMAND ...", "", _ABOUT[name], "", "commands:"]
    for word, command in commands.items():
        below = f"{name} {word}"
        about = _ABOUT.get(below) or docstring.summary(_function(command))
        lines += [f"  {word}", docstring.wrapped(about, 100, "      ")]
    lines += ["", f"{name} COMMAND --help tells more about each."]
    lines += ["t2i --version tells the version."] if name == "t2i" else []
    return "\n".join(lines)


def _check_folder():
    """Refuses to start in a folder that was deleted, which no path leads from."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder can't be found ({reason(error)}), as where it was deleted; change "
            "to another one, and start again."
        ) from None


def start_cache() -> None:
    """The persistent compilation cache: a second start skips compiling, and tracing the step of a
    training.

    JAX_COMPILATION_CACHE_DIR moves it; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says how long a
    program took to compile at least that is kept, 1 second where it is not set.
    """
    folder = os.path.expanduser(
        os.environ.get("JAX_COMPILATION_CACHE_DIR") or "~/.cache/t2i_jax/xla"
    )
    settings: dict[str, str | float] = {"jax_compilation_cache_dir": folder}
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        settings["jax_persistent_cache_min_compile_time_secs"] = 1.0
    for name, value in settings.items():
        # JAX reads the environment when it is imported, which not every command comes to
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)
        else:
            os.environ[name.upper()] = str(value)


if __name__ == "__main__":
    start()
