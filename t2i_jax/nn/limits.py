"""Counts that no network has, and types in which none computes: refused before anything is built,
where they would take hours or all memory.
"""

from __future__ import annotations

from typing import Any

from t2i_jax.config import fields_of, one_of
from t2i_jax.errors import UserError
from t2i_jax.values import shown

DTYPES = ("float32", "bfloat16", "float16")
_COUNT, _SIDE = 1000, 2**16
# Fields that count things which are built one after the other.
_COUNTS = (
    "depth",
    "layers",
    "decoder_layers",
    "blocks",
    "encoder_blocks",
    "decoder_blocks",
    "num_resnet_blocks",
    "layer_attns_depth",
    "layer_mid_attns_depth",
    "discr_layers",
    "text_enc_depth",
    "visual_enc_depth",
)
_SIDES = ("image_size", "fmap_size", "visual_image_size")


def check(network: Any) -> None:
    """Refuses a network of more than 1000 layers of one kind, of images of more than 65536 pixels a
    side, or with a dtype that is none.

    Args:
      network: a configuration with plain fields; its `dtype` where it has one.
    """
    for name in fields_of(type(network)):
        value = getattr(network, name)
        if name == "dtype":
            one_of("dtype", value, DTYPES)
        if name not in (*_COUNTS, *_SIDES):
            continue
        most = _COUNT if name in _COUNTS else _SIDE
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int) and one > most:
                raise UserError(f"{name}={shown(value)} is more than {most}; give a smaller value.")
