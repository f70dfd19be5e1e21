"""`t2i`: the command line. Every command is a thin function.

A user's mistake prints one sentence and exits with 2.
"""

from __future__ import annotations

import os
import sys

from t2i_jax.errors import Preempted, UserError

_MALLOC = (  # one heap, which gives nothing back by itself (glibc on Linux)
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592"
)


def start() -> None:
    """Entry point of the console script: `main` in a process that keeps the memory it has freed for
    what comes next.

    XLA on a CPU allocates the memory of each step anew, and the C library would get it from the
    system each time, page by page: a fifth of the time of training. It reads this setting at its
    start alone, so the process starts again as itself; a user's own GLIBC_TUNABLES stay as they
    are.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    main()


def main() -> None:
    """One command, from `sys.argv`.

    Exit status: 0 done; 2 a mistake in what was given (one sentence says which); 75 stopped by
    SIGTERM or SIGINT after saving, the same command resumes; 1 anything else, with a stack trace.
    """
    import tyro  # not above: `start` would pay for it twice

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        _start_cache()
        if sys.argv[1:2] == ["sample"]:  # its options are those of the run that is named
            from t2i_jax.cli import sample

            sample.command(sys.argv[2:])()
        else:
            tyro.extras.subcommand_cli_from_dict(_commands(), prog="t2i", args=sys.argv[1:])
    except (UserError, Preempted) as error:
        print(f"t2i: {error}", file=sys.stderr)
        sys.exit(error.status)


def _commands():
    from t2i_jax.cli import compile, convert, data, evaluate, export, quickstart, sample, train

    return {
        "quickstart": quickstart.quickstart,
        "train": train.train,
        "sample": sample.describe,
        "eval": evaluate.evaluate,
        "export": export.export,
        "data": data.data,
        "convert": convert.convert,
        "compile": compile.compile_for,
    }


def _start_cache():
    """The persistent compilation cache: a second start skips compiling, and tracing the step of a
    training.

    JAX_COMPILATION_CACHE_DIR moves it.
    """
    import jax

    folder = os.path.expanduser(
        os.environ.get("JAX_COMPILATION_CACHE_DIR") or "~/.cache/t2i_jax/xla"
    )
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


if __name__ == "__main__":
    start()
