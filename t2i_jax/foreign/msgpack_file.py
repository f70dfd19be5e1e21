"""The files of `flax.serialization`: msgpack, in which arrays are extensions; nothing in them can
run.
"""

from __future__ import annotations

import os
from typing import Any

from t2i_jax.foreign import file

ENDINGS = (".msgpack", "")  # MaskGIT's public files have no ending


def read(path: str | os.PathLike, field: str, remedy: str = "fetch it again") -> Any:
    """The contents of a msgpack file of Flax: arrays and plain values, in dicts by text.

    Args:
      field: what the user calls it, for messages. remedy: for messages.

    Raises:
      UserError: no such file, or a damaged one, or other content.
    """
    import flax.serialization

    path = file.check(path, field)
    with file.refusing(path, field, "a msgpack file of Flax", remedy):
        return flax.serialization.msgpack_restore(path.read_bytes())
