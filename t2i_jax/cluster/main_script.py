"""Scripts that start reader processes: each of them imports the script, which must not train."""

from __future__ import annotations

import ast
import multiprocessing
import sys

from t2i_jax.errors import UserError

_GUARD = 'if __name__ == "__main__":'


def check(workers: int) -> None:
    """Refuses to train where a script's reader processes would train as well.

    Args:
      workers: how many reader processes there will be.

    Raises:
      UserError: the call stands in the script itself, outside of `if __name__ == "__main__":`.
      SystemExit: this is a reader process, which runs the script; it ends with the sentence.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(f"t2i: {_sentence('this script', 'more than 0')}")
    if workers and (name := _unguarded()):
        raise UserError(_sentence(repr(name), workers))


def _sentence(script, workers):
    return (
        f"data.workers={workers}, and {script} trains whenever it is imported, as it is by each of "
        f"these processes; move the call below `{_GUARD}`, or set data.workers=0."
    )


def _unguarded():
    """The file of the running script where a call of it, outside of the guard, has led here."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if file is None or (spec is not None and spec.name.endswith("__main__")):
        return None  # typed in, or `python -m PACKAGE`: not imported again
    frame = sys._getframe()
    while frame is not None and not (
        frame.f_code.co_name == "<module>" and frame.f_globals is vars(main)
    ):
        frame = frame.f_back
    if frame is None:
        return None  # called by a thread
    try:
        with open(file, "rb") as opened:
            tree = ast.parse(opened.read())
    except (OSError, SyntaxError, ValueError):
        return None
    return None if _is_guarded(tree, frame.f_lineno) else file


def _is_guarded(tree, line):
    """Whether the statement at a line stands below a condition on `__name__`."""
    around = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and node.lineno <= line <= (node.end_lineno or line)
    )
    return any(
        isinstance(one, ast.Name) and one.id == "__name__"
        for node in around
        for one in ast.walk(node.test)
    )
