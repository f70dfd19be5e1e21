"""The arrays of a safetensors file, each read when it is asked for, in every type of number that
NumPy and ml_dtypes know; files that `write` made tell a digest of each.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign import file

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("bool"),
}

_LARGEST_HEADER = 100_000_000  # bytes that the safetensors package reads

# Key of the header's metadata: {name: CRC-32 of the array's bytes}, as JSON.
_DIGESTS = "t2i_jax.crc32"


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file with the digests of its arrays, and reads it back: often from the memory that
    holds the file for the disk.

    Raises:
      UserError: what is read back is not what was written.
    """
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    digests = json.dumps({name: _digest(value) for name, value in arrays.items()})
    save_file(arrays, path, {_DIGESTS: digests})
    for read in readers(path, "out", "write it again, to another disk").values():
        read()


def readers(
    path: str | os.PathLike, field: str, remedy: str = "fetch it again"
) -> Mapping[str, Callable[[], np.ndarray]]:
    """The names of the file's arrays, each with a function that reads the array, in the file's own
    type.

    Args:
      remedy: for a file that is damaged.

    Raises:
      UserError: no safetensors file, or a damaged one; of an array, where it is read, a type that
        is not known here, or other bytes than the file's digest is of.
    """
    from safetensors import safe_open

    path = file.check(path, field)
    with file.refusing(path, field, "a safetensors file", remedy, (file.SAFETENSORS,)):
        try:
            names = safe_open(path, framework="np").keys()  # it checks the header against the file
        except Exception:
            if told := _wrong_size(path):
                raise UserError(f"{field}={str(path)!r} {told}; {remedy}.") from None
            raise
        with open(path, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        digests = _digests(header)

    def read(name):
        about = header[name]
        if about["dtype"] not in _DTYPES:
            raise UserError(
                f"{field}={str(path)!r}: {name} is of the type {about['dtype']}, which is not read "
                "here; save it as float32 or bfloat16."
            )
        dtype, shape = _DTYPES[about["dtype"]], tuple(about["shape"])
        with file.refusing(path, field, "a safetensors file", remedy, (file.SAFETENSORS,)):
            values = np.fromfile(
                path, dtype, math.prod(shape), offset=8 + size + about["data_offsets"][0]
            )
            values = values.reshape(shape)
        if name in digests and digests[name] != _digest(values):
            raise UserError(f"{field}={str(path)!r}: {name} is not what was written; {remedy}.")
        return values

    return {name: lambda name=name: read(name) for name in names}


def _wrong_size(path):
    """How many bytes a file lacks or has too many, by its header; "" where none tells that."""
    with open(path, "rb") as opened:
        has, start = os.fstat(opened.fileno()).st_size, opened.read(9)
        size = int.from_bytes(start[:8], "little")
        if start[8:] not in (b"", file.SAFETENSORS) or (start[8:] and size > _LARGEST_HEADER):
            return ""
        if has < max(9, 8 + size):
            return f"is cut off within its header: it has {has} bytes"
        header = json.loads(start[8:] + opened.read(size - 1))
    ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
    whole = 8 + size + max(ends, default=0)
    if has < whole:
        return f"is cut off: it has {has} of {whole} bytes"
    return f"has {has - whole} bytes behind its data: {has} instead of {whole}" * (has > whole)


def _digest(values):
    return f"{zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data):08x}"


def _digests(header):
    """{} for a file of others, whatever they call by the name."""
    try:
        found = json.loads((header.get("__metadata__") or {}).get(_DIGESTS, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
