"""What runs on eight simulated devices, in a process of its own: `python -m tests.train.eight
CASE...`, which prints a line of JSON as each case ends: its name, and its traceback or null.

Each case of training goes a few steps on one device and on meshes of eight, and compares; the toy
and super-resolution do with every preset of rules.
"""

import os
import sys

if __name__ == "__main__":
    from tests.flags import FAST

    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count=8 {FAST} --xla_llvm_disable_expensive_passes=true"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import gc
import json
import traceback

import jax

from tests.train import eight_layouts, eight_samplers, eight_systems

_MODULES = (eight_layouts, eight_systems, eight_samplers)
CASES = {case.__name__: case for module in _MODULES for case in module.CASES}

if __name__ == "__main__":
    assert jax.device_count() == 8
    # as conftest.py has it
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    for name in sys.argv[1:]:
        failed = None
        try:
            CASES[name]()
        except Exception:
            failed = traceback.format_exc()
        print(json.dumps([name, failed]), flush=True)
        jax.clear_caches()  # see conftest.py
        gc.collect()
