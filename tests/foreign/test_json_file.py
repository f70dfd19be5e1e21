"""JSON that a person edited: read as it is meant, or refused in a sentence with file and place."""

import pytest

from t2i_jax.errors import UserError
from t2i_jax.foreign import json_file


def test_what_is_sound_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xbc"]}')
    assert json_file.read(tmp_path / "a.json", "run") == {"a": [1, 2.5, None, "ü"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b"{", "is no JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' twice"),
        (b'{"a": [1, {"b": NaN}]}', r"a\[1\].b is nan"),
        (b'{"a": 1e999}', "a is inf"),
        (b'{"a": "\xff"}', "cannot be read as JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "deep"),
        (b"[" * 200 + b"]" * 200, "deep"),
        (b"9" * 10_000, "is no JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "is no JSON"),
    ],
)
def test_what_is_not_is_refused_with_the_file(text, said, tmp_path):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=said) as caught:
        json_file.read(tmp_path / "a.json", "run")
    assert f"run={str(tmp_path / 'a.json')!r}" in str(caught.value)


def test_only_regular_files_are_read(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nothing", "pipe", "loop", ".", "a\0b"):
        with pytest.raises(UserError, match="is not a file|can.t be reached|null character"):
            json_file.read(f"{tmp_path}/{name}", "run")
