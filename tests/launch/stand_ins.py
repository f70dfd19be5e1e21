"""Stand-ins for the programs of clouds and clusters, found first on the PATH of the scripts under
test.

Each call is logged as one line of JSON. What a program answers is in files of one folder:
`fail.json` names calls that fail, `trainings.json` how the trainings end one after the other.
`gcloud ... ssh --command` really runs its command, in a home folder of its own for each worker,
where the programs of a worker have stand-ins too. They start often, so what few of them need is
imported there.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_HERE = (
    "gcloud",
    "kubectl",
    "docker",
    "sbatch",
    "squeue",
    "scancel",
    "scontrol",
    "srun",
    "t2i",
    "tail",
)
_ON_A_WORKER = ("sudo", "curl", "tail")
_PLAIN = {  # answers that need no log
    "hostname": 'basename "$HOME"',
    "lsb_release": "echo jammy",
    "mountpoint": 'test -L "$2"',
    "fusermount": 'test -L "$2" && rm "$2" && mkdir "$2"',
}


class StandIns:
    """One folder of stand-ins, their log, and the scripts that meet them."""

    def __init__(self, folder):
        self.folder = folder
        self.home = folder / "home"
        for part in ("bin", "worker_bin", "home", "bucket", "tmp"):
            (folder / part).mkdir()
        for name in _HERE:
            write_program(folder, folder / "bin" / name, name)
        for name in _ON_A_WORKER:
            write_program(folder, folder / "worker_bin" / name, name)
        for name, line in _PLAIN.items():
            (folder / "worker_bin" / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / "worker_bin" / name).chmod(0o755)

    def start(self, script, *arguments, status=0, variables=None, path=None, text=None):
        """The finished `bash launch/SCRIPT.sh ARGUMENTS`.

        Another status than this fails the test.
        """
        import subprocess

        environment = {
            "PATH": path or f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "tmp"),
        }
        command = [
            "bash",
            *(
                ["-c", text]
                if text
                else [str(ROOT / "launch" / f"{script}.sh"), *map(str, arguments)]
            ),
        ]
        done = subprocess.run(
            command,
            env=environment | (variables or {}),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def refused(self, script, *arguments, status=2, **kwargs):
        """The one sentence that a mistake, or a step that fails, gets on stderr."""
        lines = self.start(script, *arguments, status=status, **kwargs).stderr.splitlines()
        lines = [line for line in lines if not line.startswith("stand-in: ")]
        assert len(lines) == 1 and lines[0].startswith("launch/"), lines
        return lines[0]

    def calls(self, *tools):
        """Every call of these programs so far, as lists of words."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [call for call in map(json.loads, lines) if call[0] in tools]

    def forget(self):
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def fail(self, *rules):
        """Calls that contain `words` fail: rules (words, how many times)."""
        _write(self.folder / "fail.json", rules)

    def trainings(self, *ends):
        """How the trainings end: an exit status; "wait" for SIGTERM and end with 75.

        "preempted" with the machine.
        """
        _write(self.folder / "trainings.json", ends)

    def cloud(self, **values):
        """What the cloud has: node and queue (states or None), coming (states that the queue will
        have), workers.
        """
        with _alone(self.folder):
            _write(self.folder / "cloud.json", _cloud(self.folder) | values)
            return _cloud(self.folder)

    def worker(self, number=0):
        return self.folder / "workers" / f"worker-{number}"

    def trained(self):
        """(worker, arguments) of each start of t2i, in order."""
        return [(call[1], call[2:]) for call in self.calls("t2i")]


def wait_until(is_true, seconds=10.0):
    """Returns when `is_true()` is; looks often."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def commands(printed):
    """The commands that --dry-run printed, as lists of words."""
    return [shlex.split(line) for line in printed.splitlines() if not line.startswith("#")]


def write_program(folder, path, name):
    path.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.launch "
        f"import stand_ins\nstand_ins.answer({str(folder)!r}, {name!r}, sys.argv[1:])\n"
    )
    path.chmod(0o755)


def answer(folder, name, arguments):
    """What an executable of `write_program` does: logs, fails where it is told to, or answers."""
    folder = pathlib.Path(folder)
    call = [name, *([os.path.basename(os.environ["HOME"])] if name == "t2i" else []), *arguments]
    line = shlex.join(call)
    earlier = (
        (folder / "calls.jsonl").read_text().splitlines()
        if (folder / "calls.jsonl").exists()
        else []
    )
    with open(folder / "calls.jsonl", "a") as log:
        log.write(json.dumps(call) + "\n")
    for words, times in _read(folder / "fail.json", []):
        if words in line and sum(words in shlex.join(json.loads(old)) for old in earlier) < times:
            print(f"stand-in: {words} fails", file=sys.stderr)
            sys.exit(3)
    sys.exit(globals()[f"_{name}"](folder, arguments))


def _read(file, default):
    return json.loads(file.read_text()) if file.exists() else default


def _write(file, value):
    """Whole, or not at all: a call beside this one may be reading the file."""
    whole = file.with_name(f"{file.name}.{os.getpid()}")
    whole.write_text(json.dumps(value))
    whole.replace(file)


@contextlib.contextmanager
def _alone(folder):
    """One process at a time, so that what one call has changed is not undone by another."""
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _options(arguments):
    """{"--zone": "z", ...}; a flag's value is whatever follows."""
    return dict(zip(arguments, [*arguments[1:], ""], strict=True))


# --- Google Cloud


def _cloud(folder):
    return _read(folder / "cloud.json", {"node": None, "queue": None, "coming": [], "workers": 1})


def _gcloud(folder, arguments):
    _, _, group, verb, *_ = arguments
    if verb in ("ssh", "scp"):
        cloud = _cloud(folder)
        if cloud["node"] != "READY":
            return 1
        return (_ssh if verb == "ssh" else _scp)(folder, cloud, arguments)
    with _alone(folder):
        _change(folder, group, verb)
    return 0


def _change(folder, group, verb):
    cloud = _cloud(folder)
    if verb == "create" and group == "tpu-vm":
        cloud["node"] = "READY"
        _make_workers(folder, cloud)
    elif verb == "create":
        cloud["queue"] = "ACCEPTED"
    elif verb == "delete":
        import shutil

        cloud |= {"node": None, "queue": None}
        shutil.rmtree(folder / "workers", ignore_errors=True)
    elif verb == "list":
        _list(folder, cloud, group)
    _write(folder / "cloud.json", cloud)


def _list(folder, cloud, group):
    """Time goes on when somebody looks at the queue: it has its next state, a machine that is to be
    taken is taken.
    """
    if (
        group == "queued-resources"
        and cloud["queue"] not in (None, "ACTIVE", "SUSPENDED")
        and cloud["coming"]
    ):
        cloud["queue"] = cloud["coming"].pop(0)
        if cloud["queue"] == "ACTIVE":
            cloud["node"] = "READY"
            _make_workers(folder, cloud)
    if group == "queued-resources" and (folder / "preempted").exists():
        (folder / "preempted").unlink()
        cloud["node"] = "PREEMPTED"
        cloud["queue"] = cloud["queue"] and "SUSPENDED"
    state = cloud["queue" if group == "queued-resources" else "node"]
    if state:
        print(state)


def _make_workers(folder, cloud):
    for number in range(cloud["workers"]):
        (folder / "workers" / f"worker-{number}" / "bin").mkdir(parents=True)


def _chosen(folder, cloud, arguments):
    worker = _options(arguments)["--worker"]
    numbers = range(cloud["workers"]) if worker == "all" else [int(worker)]
    return [folder / "workers" / f"worker-{number}" for number in numbers]


def _scp(folder, cloud, arguments):
    source, target = arguments[4:6]
    for home in _chosen(folder, cloud, arguments):
        (home / target.split(":")[1]).write_bytes(pathlib.Path(source).read_bytes())
    return 0


def _ssh(folder, cloud, arguments):
    import subprocess

    worst = 0
    for home in _chosen(folder, cloud, arguments):
        path = f"{home / 'bin'}:{folder / 'worker_bin'}:/usr/bin:/bin"
        done = subprocess.run(
            ["bash", "-c", _options(arguments)["--command"]],
            cwd=home,
            env={"HOME": str(home), "PATH": path},
        )
        worst = worst or done.returncode
    return worst


# --- a worker


def _home():
    return pathlib.Path(os.environ["HOME"])


def _sudo(folder, arguments):
    if arguments[0] == "tee":
        sys.stdin.read()
    if arguments[0] == "apt-get" and arguments[-1] == "gcsfuse":
        write_program(folder, _home() / "bin" / "gcsfuse", "gcsfuse")
    return 0


def _curl(folder, arguments):
    (_home() / ".local" / "bin").mkdir(parents=True, exist_ok=True)
    write_program(folder, _home() / ".local" / "bin" / "uv", "uv")
    print("true")
    return 0


def _uv(folder, arguments):
    if arguments[0] == "venv":
        bin_folder = pathlib.Path(arguments[-1]) / "bin"
        bin_folder.mkdir(parents=True)
        write_program(folder, bin_folder / "python", "t2i")
        return 0
    source, extra = arguments[-1].split("[")
    write_program(folder, pathlib.Path(_options(arguments)["--python"]).parent / "t2i", "t2i")
    return int(extra != "tpu]" or not os.path.exists(f"{source}/setup.cfg"))


def _gcsfuse(folder, arguments):
    """The bucket is one folder for all workers."""
    mount = pathlib.Path(arguments[-1])
    mount.rmdir()
    mount.symlink_to(folder / "bucket")
    return 0


def _tail(folder, arguments):
    """As the real one, but it never follows."""
    os.execv("/usr/bin/tail", ["tail", *(word for word in arguments if word != "-F")])


def _t2i(folder, arguments):
    """Trains as `StandIns.trainings` says; each process of a run counts its own starts."""
    who = os.environ.get("SLURM_PROCID", _home().name)
    counter = folder / f"starts-{who}"
    number = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(number + 1))
    ends = _read(folder / "trainings.json", [0])
    end = ends[min(number, len(ends) - 1)]
    pathlib.Path(_options(arguments)["--workdir"]).mkdir(parents=True, exist_ok=True)
    print(f"training {number} on {who}", flush=True)
    if end == "wait":
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        (folder / f"waits-{who}").touch()
        wait_until(lambda: stopped)
        return 75
    if end == "preempted":
        (folder / "preempted").touch()
        wait_until(lambda: not _home().exists())
        return 143
    return end


# --- Kubernetes and docker


def _kubectl(folder, arguments):
    jobset = folder / "jobset.yaml"
    if arguments[0] == "create":
        if jobset.exists():
            return 1
        jobset.write_text(sys.stdin.read())
    elif arguments[0] == "get" and not jobset.exists():
        return 1
    elif arguments[0] == "delete":
        jobset.unlink(missing_ok=True)
    elif arguments[0] == "logs":
        print("a line of the log")
    return 0


def _docker(folder, arguments):
    return 0


# --- Slurm


def _sbatch(folder, arguments):
    _write(folder / "job.json", arguments)
    print("Submitted batch job 123")
    return 0


def _squeue(folder, arguments):
    if (folder / "job.json").exists():
        print("123")
    return 0


def _scancel(folder, arguments):
    (folder / "job.json").unlink()
    return 0


def _scontrol(folder, arguments):
    (folder / "requeued").touch()
    return 0


def _srun(folder, arguments):
    """All processes at once; the highest status, as srun returns it."""
    import subprocess

    while arguments[0].startswith("--"):
        arguments = arguments[1 if arguments[0] == "--label" or "=" in arguments[0] else 2 :]
    tasks = [
        subprocess.Popen(arguments, env=os.environ | {"SLURM_PROCID": str(number)})
        for number in range(int(os.environ["SLURM_NTASKS"]))
    ]
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
    return max(task.wait() for task in tasks)
