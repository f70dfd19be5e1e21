"""Processes of this machine that find each other over loopback."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(count, *command, slurm=False):
    """So many Python processes of a command, told of each other by plain variables or by those of a
    Slurm job.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = str(random.randrange(2**20))  # JAX makes a port of it

    def told(process):
        if slurm:
            step = {"NODELIST": "localhost", "NUM_TASKS": count, "NUM_NODES": 1}
            named = {"JOB_ID": job, "NTASKS": count, "PROCID": process, "LOCALID": process}
            return {f"SLURM_{name}": value for name, value in named.items()} | {
                f"SLURM_STEP_{name}": value for name, value in step.items()
            }
        return {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": count,
            "JAX_PROCESS_ID": process,
        }

    settings = {"cwd": _ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environments = [
        {**os.environ, **{k: str(v) for k, v in told(process).items()}} for process in range(count)
    ]
    return [
        subprocess.Popen([sys.executable, *map(str, command)], env=env, **settings)
        for env in environments
    ]


def end(processes):
    """(exit statuses, what each printed on stdout, on stderr).

    Those that run on for five minutes are killed.
    """
    try:
        printed = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    out, err = zip(*printed, strict=True)
    return [process.returncode for process in processes], out, err


def losses(workdir, name="loss"):
    """Those that were logged under a name, by step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}
