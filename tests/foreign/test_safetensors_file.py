"""Files of weights that tell the digests of their arrays."""

import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t2i_jax.errors import UserError
from t2i_jax.foreign import safetensors_file

KEY = safetensors_file._DIGESTS
ARRAYS = {
    "params/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "params/half": np.arange(3).astype(ml_dtypes.bfloat16),
    "stats/count": np.array(7, np.int32),
    "stats/none": np.zeros((0, 4), np.float32),
}


def _read(path):
    readers = safetensors_file.readers(path, "run", "restore it from a copy")
    return {name: read() for name, read in readers.items()}


def _assert_the_same(found):
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_what_is_written_is_read_by_others_too(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors_file.write(path, ARRAYS)
    _assert_the_same(_read(path))
    _assert_the_same(load_file(path))


def test_any_changed_bit_of_an_array_is_found_and_the_array_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors_file.write(path, ARRAYS)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - begin == sum(value.nbytes for value in ARRAYS.values())
    for place in range(begin, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(UserError) as found:
            _read(path)
        named = any(name in str(found.value) for name in ARRAYS)
        assert named and "is not what was written; restore it from a copy." in str(found.value)


@pytest.mark.parametrize("told", [{}, {KEY: "none"}, {KEY: "[1]"}, {"format": "pt"}])
def test_a_file_of_others_has_no_digests_whatever_its_header_tells(tmp_path, told):
    path = tmp_path / "weights.safetensors"
    save_file({name: np.array(value, order="C") for name, value in ARRAYS.items()}, path, told)
    _assert_the_same(_read(path))


def test_what_a_disk_does_not_keep_is_told_at_once(tmp_path, monkeypatch):
    def forgetful(arrays, path, told):
        save_file({name: np.zeros_like(value) for name, value in arrays.items()}, path, told)

    monkeypatch.setattr("safetensors.numpy.save_file", forgetful)
    with pytest.raises(UserError, match="is not what was written; write it again"):
        safetensors_file.write(tmp_path / "weights.safetensors", ARRAYS)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (slice(3), "is cut off within its header: it has 3 bytes"),
        (slice(8), "is cut off within its header: it has 8 bytes"),
        (slice(100), "is cut off within its header: it has 100 bytes"),
        ("begin", r"is cut off: it has \d+ of {whole} bytes"),
        ("begin + 10", r"is cut off: it has \d+ of {whole} bytes"),
        (slice(-1), r"is cut off: it has \d+ of {whole} bytes"),
        ("more", r"has 5 bytes behind its data: \d+ instead of {whole}"),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_a_file_of_another_length_tells_how_long_it_is_and_should_be(tmp_path, cut, said, ours):
    path = tmp_path / "weights.safetensors"
    arrays = {name: np.array(value, order="C") for name, value in ARRAYS.items()}
    safetensors_file.write(path, arrays) if ours else save_file(arrays, path)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    ends = {"begin": whole[:begin], "begin + 10": whole[: begin + 10], "more": whole + b"12345"}
    path.write_bytes(ends[cut] if isinstance(cut, str) else whole[cut])
    with pytest.raises(UserError) as found:
        _read(path)
    sentence = f"^run='.*' {said.replace('{whole}', str(len(whole)))}; restore it from a copy.$"
    assert re.search(sentence, str(found.value)), str(found.value)


def test_a_damaged_header_is_not_told_to_be_a_file_of_another_kind(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors_file.write(path, ARRAYS)
    path.write_bytes(path.read_bytes().replace(b'"data_offsets"', b'"data_offset\x01"', 1))
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        _read(path)
