"""Detection of a run over several processes: by plain variables, a TPU slice, Slurm, or an indexed
Kubernetes job.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import cloud_tpu_init

from t2i_jax.cluster import lines, register
from t2i_jax.errors import Preempted, UserError
from t2i_jax.terminal import say

_PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
_PATIENCE = 300  # seconds that processes wait for each other at the start


def start() -> None:
    """Joins the processes of this run, where the environment names others.

    Nothing may have touched a device before.

    Raises:
      UserError: what the environment says does not fit together, or process 0 can't listen.
    """
    if jax.distributed.is_initialized() or (found := detect()) is None:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    # JAX would abort, with the stack trace of its threads
    late = threading.Timer(_PATIENCE, _give_up, [found])
    late.daemon = True
    late.start()
    try:
        found = {**found, **_entered(found)}
        jax.distributed.initialize(**found, initialization_timeout=_PATIENCE + 60)
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{_description(found)} does not start ({first}); {_REMEDY}.") from error
    finally:
        late.cancel()


def _entered(found):
    """Enters a process whose number a person gave, and says where process 0 listens."""
    if "process_id" not in found:
        return {}
    host, _, port = found["coordinator_address"].rpartition(":")
    host = host.strip("[]")
    register.enter(host, int(port), found["process_id"], found["num_processes"])
    address = lines.bound(host) if found["process_id"] == 0 else None
    if address is None:
        return {}
    return {
        "coordinator_bind_address": f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    }


def detect() -> Mapping[str, Any] | None:
    """The arguments for `jax.distributed.initialize`; None: this process is alone.

    Asks nobody but on a TPU VM.

    Raises:
      UserError: the variables are incomplete, or hold what they can't.
    """
    given = {name: os.environ[name] for name in _PLAIN if os.environ.get(name)}
    if given:
        return _plain(given)
    if cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" in (
        os.environ.get("JAX_PLATFORMS") or "tpu"
    ):
        return _tpu()
    if all(name in os.environ for name in _SLURM) and _number("SLURM_STEP_NUM_TASKS") > 1:
        return _slurm()
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(os.environ):
        return _kubernetes()
    return None


def _is_number(text):
    """Whether a text is a whole number as people write it; Python's `isdigit` takes "²" for one."""
    return bool(re.fullmatch("[0-9]{1,9}", text))


def _number(name):
    """The number that a variable of a cluster holds; 1 where it is not set."""
    text = os.environ.get(name) or "1"
    if not _is_number(text):
        raise UserError(f"{name}={text[:60]!r} of the environment is not a whole number; mend it.")
    return int(text)


def _plain(given):
    if given.get("JAX_NUM_PROCESSES") == "1":
        return None
    for name in _PLAIN:
        if name not in given:
            there = ", ".join(f"{name}={value}" for name, value in given.items())
            raise UserError(
                f"{name}='' beside {there}; set all three, or JAX_NUM_PROCESSES=1 for a process "
                "alone."
            )
    address, count, process = given.values()
    host, _, port = address.rpartition(":")
    if not host or not _is_number(port) or not 0 < int(port) < 2**16:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS={address!r} is no address; give process 0's, as host:port."
        )
    if not _is_number(count) or int(count) < 1:
        raise UserError(
            f"JAX_NUM_PROCESSES={count!r} is not a whole number from 1; give how many there are in "
            "all."
        )
    if not _is_number(process) or int(process) >= int(count):
        numbers = f"from 0 to {int(count) - 1}"
        raise UserError(
            f"JAX_PROCESS_ID={process!r} is none of {count} processes; count them {numbers}."
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(process),
        "cluster_detection_method": "deactivate",
    }


def _tpu():
    """The arguments on a TPU slice, whose machines the variables of GKE name.

    Elsewhere the VM's metadata do, which JAX asks.
    """
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        alone = "," not in hosts and _number("MEGASCALE_NUM_SLICES") == 1
        return None if alone else {"cluster_detection_method": "gketpu"}
    return None if "TPU_SKIP_MDS_QUERY" in os.environ else {"cluster_detection_method": "gcetpu"}


def _slurm():
    """The tasks of this job step.

    JAX gives a task the GPU of its number on the node, which is right for some only.
    """
    count = _number("SLURM_STEP_NUM_TASKS")
    found = {"cluster_detection_method": "slurm", "num_processes": count}
    alone_on_node = os.environ.get("SLURM_STEP_NUM_NODES") == str(count)
    sees_one = "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ",")
    if (alone_on_node or sees_one) and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        found["local_device_ids"] = []  # all that it sees
    return found


def _kubernetes():
    if importlib.util.find_spec("kubernetes") is None:
        index = os.environ["JOB_COMPLETION_INDEX"]
        raise UserError(
            f"JOB_COMPLETION_INDEX={index!r} makes this a pod of an indexed job, and the package "
            f"that finds the others is missing; pip install kubernetes, or set {', '.join(_PLAIN)} "
            "(JAX_NUM_PROCESSES=1 for a process alone)."
        )
    return {"cluster_detection_method": "k8s"}


_REMEDY = (
    "start every process, with the same address, that of process 0 and a free port there, and a "
    "number of its own"
)


def _description(found):
    if "process_id" in found:
        return (
            f"process {found['process_id']} of {found['num_processes']} at "
            f"{found['coordinator_address']!r}"
        )
    return f"this process, one of several by {found['cluster_detection_method']!r},"


def _give_up(found):
    say(f"t2i: {_description(found)} has waited {_PATIENCE} s for the others; {_REMEDY}.")
    os._exit(Preempted.status)  # perhaps one of them has just failed, and all start again
