"""Peak rates of accelerator chips, from their makers' data sheets; the torus of a TPU's chips as
"How to Scale Your Model" (Austin et al. 2025, chapter 2) has it.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """The limits of one chip.

    Attributes:
      flops: dense bf16 FLOP/s. hbm: GiB of memory. bandwidth: of that memory, bytes/s.
      ici: bytes/s that a ring over one axis of the torus carries through a chip, both directions
        together; NVLink's of one direction for a GPU.
      dcn: bytes/s of one chip's share of its host's network, between slices; 0 for a GPU.
    """

    flops: float
    hbm: float = 0.0
    bandwidth: float = 0.0
    ici: float = 0.0
    dcn: float = 0.0


V4 = Chip(275e12, 32, 1.23e12, 90e9, 6.25e9)  # hosts of four chips with 200 Gbit/s
V5E = Chip(197e12, 16, 0.82e12, 90e9, 3.125e9)  # of eight with 2 x 100 Gbit/s
V5P = Chip(459e12, 95, 2.76e12, 180e9, 6.25e9)  # of four with 200 Gbit/s
V6E = Chip(918e12, 32, 1.64e12, 180e9, 12.5e9)  # of eight with 4 x 200 Gbit/s

# By the start of JAX's `device_kind`.
CHIPS = {
    "TPU v4": V4,
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5p": V5P,
    "TPU v5": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
    "NVIDIA A100": Chip(312e12, 80, 2.0e12, 300e9),
    "NVIDIA H100": Chip(989e12, 80, 3.35e12, 450e9),
    "NVIDIA H100 PCIe": Chip(756e12, 80, 2.0e12, 300e9),
    "NVIDIA H100 NVL": Chip(835e12, 94, 3.9e12, 300e9),
    "NVIDIA H200": Chip(989e12, 141, 4.8e12, 450e9),
    "NVIDIA H200 NVL": Chip(836e12, 141, 4.8e12, 450e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip whose name a `device_kind` begins with, the longest such name.

    None: not in the table.
    """
    found = max((name for name in CHIPS if device_kind.startswith(name)), key=len, default=None)
    return CHIPS[found] if found else None
