"""Files of prompts, as `t2i sample --prompts` reads them."""

import json

import pytest

from t2i_jax.cli.prompts import read_prompts
from t2i_jax.errors import UserError
from t2i_jax.eval import prompt_files, prompts, sample_folder


def test_the_numbers_of_a_folder_of_samples_are_no_part_of_its_prompts(tmp_path, capfd):
    sample_folder.write_captions(tmp_path, ["a red circle", "12 blue cups"])
    assert read_prompts(tmp_path / "captions.txt") == ["a red circle", "12 blue cups"]
    assert "has the numbers of t2i sample in front" in capfd.readouterr().err
    (tmp_path / "own.txt").write_text("001 nights\n000 is a number\n")
    assert read_prompts(tmp_path / "own.txt") == ["001 nights", "000 is a number"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("columns", "read"),
    [(("caption", "prompt"), "caption"), (("prompt", "text"), "text"), (("Prompts",), "Prompts")],
)
def test_sampling_and_evaluation_read_the_same_column(tmp_path, columns, read):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({name: f"a {name}" for name in reversed(columns)}) + "\n")
    assert read_prompts(path) == [f"a {read}"]
    assert [one.text for one in prompt_files.plain(path, None, None)[0]] == [f"a {read}"]


def test_a_table_without_such_a_column_is_refused(tmp_path):
    (tmp_path / "prompts.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match="no column caption or text or prompt"):
        read_prompts(tmp_path / "prompts.csv")


@pytest.mark.parametrize("text", ["a\rb\r", "a\rb"])
def test_lines_that_end_with_carriage_returns_alone_are_no_single_prompt(tmp_path, text):
    path = tmp_path / "prompts.txt"
    path.write_bytes(text.encode())
    for read in (read_prompts, prompts.read):
        with pytest.raises(UserError, match="ends its lines with carriage returns alone; save it"):
            read(path if read is read_prompts else str(path))
    for fine in ("a\r\nb\r\n", "a\r", "a \r b\n"):
        path.write_bytes(fine.encode())
        read_prompts(path)
