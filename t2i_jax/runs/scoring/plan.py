"""The plan of a folder of results: what its images are and how they are made. It is written once,
and a command with another plan is refused.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import PIL

import t2i_jax
from t2i_jax import config, files, paths
from t2i_jax.cluster import lock, processes
from t2i_jax.errors import UserError
from t2i_jax.eval import layout
from t2i_jax.foreign import json_file
from t2i_jax.runs.report import REPORT
from t2i_jax.runs.scoring.results import MARKS, RESULTS, VALUES
from t2i_jax.train.identity import source

FILE = "plan.json"
SCHEMA = 1
# below the folder of results, or of several of them
_FOLDERS = (
    "images", "images/[0-9][0-9][0-9][0-9][0-9]", "codes", "features", "features/*", "features/*/*",
    "guidance-*", *layout.LAYOUTS,
)  # fmt: skip
_FILES = (
    FILE, RESULTS, VALUES, MARKS, "times.json", "sweep.json", REPORT, "codes/*.npz",
    "features/*/*/*.npz",
)  # fmt: skip
_OF_SEVERAL = ("features", "guidance-*", "results-[1-9]*", "sweep.json", REPORT)
_MOST = 4  # fields that a refusal names
# flags that change no number, and one that is told as devices
_IDLE_FLAGS = ("--xla_dump_", "--xla_force_host_platform_device_count=")
# what plans of earlier versions do not say, or always in one way: those without software.source
_LATER = (
    ("software", "source"), ("software", "flags"), ("run", "ema"), ("sampling", "samplers"),
)  # fmt: skip


def software() -> dict[str, Any]:
    """The software that can change pixels or features: versions, this package's source, the kind of
    device, and the compiler's flags.
    """
    devices = jax.local_devices()
    told = (os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    flags = itertools.chain.from_iterable(map(str.split, told))
    return {
        "t2i_jax": t2i_jax.__version__,
        "source": source()[:16],
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "device": devices[0].device_kind,
        "devices_per_process": len(devices),
        "flags": sorted(flag for flag in flags if not flag.startswith(_IDLE_FLAGS)),
    }


def settle(folder: pathlib.Path, plan: Mapping[str, Any]) -> None:
    """Writes the plan of a new folder, or checks that the folder was begun with the same.

    Every process calls it.

    Args:
      plan: JSON.

    Raises:
      UserError: the folder was begun with another plan (the fields and both values are told), holds
        something else or a file where a folder belongs, or the processes do not agree.
    """
    plan = json.loads(json.dumps({"schema": SCHEMA, **plan}))
    processes.check_same(plan, "another plan", "start all with the same command")
    processes.once(lambda: _settle(folder, plan))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON with sorted keys and numbers in full; the same value is the same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    with files.replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def check_places(folder: pathlib.Path) -> None:
    """Refuses a folder of results that has a file where a folder belongs, or the other way round.

    Raises:
      UserError: it has.
    """
    for names, is_one, kind in (
        (_FOLDERS, pathlib.Path.is_dir, "folder"), (_FILES, pathlib.Path.is_file, "file"),
    ):  # fmt: skip
        for there in (one for name in names for one in sorted(folder.glob(name))):
            if not is_one(there):
                raise UserError(
                    f"out={paths.shown(folder)} has {str(there.relative_to(folder))!r}, which is "
                    f"not a {kind}; remove it, or name a new folder."
                )


def check_several(folder: pathlib.Path) -> None:
    """Checks the places of files by `check_places`, for a folder of several guidances, which has no
    plan itself.

    Raises:
      UserError: as `check_places`, or something else is in it.
    """
    check_places(folder)
    if not (folder / FILE).exists():
        _check_own(folder, _OF_SEVERAL)


def _check_own(folder, names):
    """Refuses a folder that holds anything but these and what a killed command left of them."""
    own = (lock.FILE, *names, *map(files.partial, names))
    for there in sorted(one.name for one in folder.iterdir()):
        if not any(fnmatch.fnmatchcase(there, name) for name in own):
            raise UserError(
                f"out={paths.shown(folder)} holds {there!r} and no {FILE}; name a new folder."
            )


def _with_later(begun, plan):
    """A plan with what its version did not know as the command has it, which may then go on."""
    software = begun.get("software") if isinstance(begun, dict) else None
    if not isinstance(software, dict) or "source" in software:
        return begun
    for group, name in _LATER:
        if isinstance(begun.get(group), dict) and name in (plan.get(group) or {}):
            begun = {**begun, group: {**begun[group], name: plan[group][name]}}
    return begun


def _settle(folder, plan):
    paths.make("out", folder)
    check_places(folder)
    path = folder / FILE
    if not path.exists():
        _check_own(folder, (FILE,))
        write_json(path, plan)
        return
    begun = _with_later(json_file.read(path, "out", "name a new folder"), plan)
    if changed := config.differences(begun, plan):
        more = f"; and {len(changed) - _MOST} more" if len(changed) > _MOST else ""
        raise UserError(
            f"out={paths.shown(folder)} was begun with another plan "
            f"({'; '.join(changed[:_MOST])}{more}); give the same again, or name a new folder."
        )
