"""Lines on a terminal: what it can't show costs a character, and not what is printed after it."""

import io
import sys

import pytest
from tqdm import tqdm

from t2i_jax.terminal import _Forgiving, say


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "caf\\xe9 \\u732b"), ("latin-1", "café \\u732b")]
)
def test_a_character_that_an_encoding_lacks_costs_no_later_line(tmp_path, encoding, shown):
    with open(tmp_path / "out", "w", encoding=encoding) as stream:
        out = _Forgiving(stream, stream.fileno())
        print("one", file=out)
        print("café 猫", file=out, flush=True)
        out.writelines(["caption: 猫\n", "later\n"])
    lines = (tmp_path / "out").read_text(encoding=encoding).splitlines()
    assert lines == ["one", shown, "caption: \\u732b", "later"]


def test_a_sentence_stands_above_the_progress_line(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with tqdm(total=6, desc="run", file=out) as bar:
        bar.update(4)
        say("a file is set aside.")
    lines = [line.rpartition("\r")[2] for line in out.getvalue().split("\n")]
    assert "a file is set aside." in lines
