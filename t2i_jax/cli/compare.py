"""`t2i evaluate compare`: whether two results differ by more than chance."""

from __future__ import annotations

import pathlib
from typing import Annotated

from t2i_jax import paths
from t2i_jax.cli.arguments import Shown


def compare(
    a: Annotated[pathlib.Path, Shown("A", positional=True)],
    b: Annotated[pathlib.Path, Shown("B", positional=True)],
) -> None:
    """Tell whether two results differ by more than chance.

    Args:
        a: Folder of results of t2i evaluate.
        b: Another one, of the same protocol.
    """
    from t2i_jax.eval import compare as comparing
    from t2i_jax.runs.scoring.results import read_results

    first, second = (read_results(paths.given(name, one)) for name, one in (("a", a), ("b", b)))
    found = comparing.compare(
        first.results, second.results, first.values, second.values,
        marks=(first.marks, second.marks),
    )  # fmt: skip
    print(comparing.table(found, _columns(a, b)))


def _columns(a, b):
    """The headings of two folders' columns: their names, or their whole paths where the names are
    equal.
    """
    for names in ((a.name, b.name), (str(a), str(b))):
        if all(names) and names[0] != names[1]:
            return names
    return "A", "B"
