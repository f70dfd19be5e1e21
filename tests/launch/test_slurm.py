"""launch/slurm.sh and the job it queues: the job runs for real, with stand-ins of srun and
scontrol.
"""

import os
import re
import signal
import subprocess

import pytest

from tests.launch.stand_ins import ROOT, wait_until

_CONFIG = "configs/imagen/shapes.py"
_ODD = ("train.mesh={'data': 2}", 'name="two  words" $HOME `x` \\ *', "--mesh", "data=2")
_JOB = ROOT / "launch" / "slurm_job.sh"


class _Cluster:
    """Queues a job with slurm.sh and runs what is in the queue."""

    def __init__(self, stand_ins):
        self.stand_ins, self.folder = stand_ins, stand_ins.folder
        self.logs = self.folder / "logs"

    def slurm(self, *arguments, **kwargs):
        return self.stand_ins.start("slurm", *arguments, "--logs", self.logs, **kwargs)

    def submit(self, *arguments, **kwargs):
        program, workdir = self.folder / "bin" / "t2i", self.folder / "the run"
        return self.slurm(
            "submit", "run", "--t2i", program, "--workdir", workdir, _CONFIG, *arguments, **kwargs
        )

    def start_job(self, restarts=0):
        """The job as Slurm starts it: a copy of the script, its arguments, its output logged."""
        [call] = self.stand_ins.calls("sbatch")
        at = call.index(str(_JOB))
        copy = self.folder / "slurm_script"
        copy.write_text(_JOB.read_text())
        variables = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.stand_ins.home),
            "SLURM_JOB_ID": "123",
            "SLURM_NTASKS": "2",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        with open(call[call.index("--output") + 1], "a") as output:
            return subprocess.Popen(
                ["bash", copy, *call[at + 1 :]],
                env=variables,
                cwd=self.folder,
                stdout=output,
                stderr=output,
            )

    def run_job(self):
        """The exit statuses of the job, start by start, as long as it queues itself again."""
        ends, requeued = [], self.folder / "requeued"
        while not ends or requeued.exists():
            requeued.unlink(missing_ok=True)
            ends.append(self.start_job(len(ends)).wait(timeout=20))
        return ends

    def log(self):
        return (self.logs / "run.log").read_text()


@pytest.fixture
def cluster(stand_ins):
    return _Cluster(stand_ins)


def test_the_full_life_of_a_job(stand_ins, cluster):
    stand_ins.trainings(75, 1, 75, 0)
    cluster.submit(*_ODD, "--nodes", "2", "--time", "1:00:00")
    assert "123" in cluster.slurm("status", "run").stdout
    said = cluster.submit(status=1).stderr  # never a second one beside it
    assert "submit: job 123 has the name run already; cancel it, or use another one." in said
    assert cluster.run_job() == [0, 0, 0, 0]

    requeues = stand_ins.calls("scontrol")
    assert requeues == [["scontrol", "requeue", "incomplete", "123"]] * 3
    command = ["train", _CONFIG, *_ODD, "--workdir", str(cluster.folder / "the run")]
    # two processes, four starts
    assert [words for _, words in stand_ins.trained()] == [command] * 8
    assert "last end of the training: 0" in cluster.slurm("status", "run").stdout
    log = cluster.slurm("logs", "run", "--no-follow").stdout
    assert [f"job 123, start {number}" in log for number in (1, 2, 3, 4)] == [True] * 4
    cluster.slurm("logs", "run")
    assert "-F" in stand_ins.calls("tail")[-1]

    cluster.slurm("cancel", "run")
    assert stand_ins.calls("scancel")
    assert "nothing to cancel" in cluster.slurm("cancel", "run").stdout


def test_a_mistake_ends_the_job(stand_ins, cluster):
    stand_ins.trainings(2)
    cluster.submit()
    assert cluster.run_job() == [2] and not stand_ins.calls("scontrol")
    assert "a mistake in what was given, see above" in cluster.log()
    assert "last end of the training: 2" in cluster.slurm("status", "run").stdout


def test_a_failure_starts_again_a_limited_number_of_times(stand_ins, cluster):
    stand_ins.trainings(1, 137, 75, 1, 134, 1)
    cluster.submit("--max-failures", "2")
    assert cluster.run_job() == [0, 0, 0, 0, 0, 1]
    assert "ended with 1, 3 times in a row; see above, and submit again." in cluster.log()


def test_a_job_submitted_again_counts_from_nothing(stand_ins, cluster):
    stand_ins.trainings(1)
    for _ in range(2):
        cluster.submit("--max-failures", "1")
        assert cluster.run_job() == [0, 1]
        (stand_ins.folder / "job.json").unlink()
        stand_ins.forget()


def test_the_job_waits_for_its_processes_when_it_is_told_to_stop(stand_ins, cluster):
    stand_ins.trainings("wait")
    cluster.submit()
    job = cluster.start_job()
    wait_until(lambda: all((stand_ins.folder / f"waits-{number}").exists() for number in (0, 1)))
    os.kill(job.pid, signal.SIGTERM)  # the script; the processes have theirs from Slurm
    srun = subprocess.run(
        ["pgrep", "-P", str(job.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(srun[0]), signal.SIGTERM)
    assert (
        job.wait(timeout=20) == 0
        and "ended with 75" in cluster.log()
        and stand_ins.calls("scontrol")
    )


def test_what_is_asked_of_slurm(stand_ins, cluster):
    options = (
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
        "--cpus-per-gpu",
        "9",
        "--grace",
        "60",
        "--partition",
        "gpu",
    )
    cluster.submit(*options, "--account", "people")
    [call] = stand_ins.calls("sbatch")
    asked = dict(
        zip(call[1 : call.index(str(_JOB)) : 2], call[2 : call.index(str(_JOB)) : 2], strict=True)
    )
    assert asked == {
        "--job-name": "run",
        "--nodes": "2",
        "--gpus-per-node": "4",
        "--ntasks-per-node": "4",  # JAX: one process per GPU
        "--cpus-per-task": "9",
        "--signal": "TERM@60",
        "--output": str(cluster.logs / "run.log"),
        "--partition": "gpu",
        "--account": "people",
    }
    directives = re.findall(r"^#SBATCH (--\S+)$", _JOB.read_text(), re.M)
    assert {"--requeue", "--open-mode=append", "--signal=TERM@300", "--nodes=1"} <= set(directives)
    assert {word.split("=")[0] for word in directives} >= {"--gpus-per-node", "--ntasks-per-node"}
    cluster.run_job()
    [srun] = stand_ins.calls("srun")
    assert srun[1:6] == ["--label", "--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task", "4"]


def test_the_program_is_the_checkouts_or_the_one_on_the_path(stand_ins, cluster):
    stand_ins.start("slurm", "submit", "run", "--logs", cluster.logs, _CONFIG)
    [call] = stand_ins.calls("sbatch")
    beside = ROOT / ".venv" / "bin" / "t2i"
    assert str(beside if beside.exists() else stand_ins.folder / "bin" / "t2i") in call
    said = stand_ins.refused("slurm", "submit", "run", "--t2i", "/nowhere/t2i", _CONFIG)
    assert "t2i='/nowhere/t2i' is not a program; " in said


@pytest.mark.parametrize(
    ("words", "broken", "step"),
    [
        ("submit", "squeue", "asking the queue for run failed with status 3"),
        ("submit", "sbatch", "submit: queueing run failed with status 3"),
        ("status", "squeue", "asking the queue for run failed with status 3"),
        ("logs", "tail", "failed with status 3"),
        ("cancel", "squeue", "asking the queue for run failed with status 3"),
        ("cancel", "scancel", "cancel: cancelling run failed with status 3"),
    ],
)
def test_a_step_that_fails_is_named_and_nothing_follows_it(stand_ins, cluster, words, broken, step):
    if words != "submit":
        cluster.submit()
        cluster.run_job()
    stand_ins.fail((broken, 9))
    arguments = (words, "run", *([_CONFIG] if words == "submit" else []), "--logs", cluster.logs)
    assert step in stand_ins.refused("slurm", *arguments, status=1)
    assert stand_ins.calls("squeue", "sbatch", "tail", "scancel")[-1][0] == broken


def test_a_folder_that_cannot_be_made_is_named(stand_ins, cluster):
    cluster.logs.touch()
    assert f"submit: making the folder {cluster.logs} failed" in cluster.submit(status=1).stderr
    assert not stand_ins.calls("sbatch")


def test_a_job_that_cannot_queue_itself_again_says_so(stand_ins, cluster):
    stand_ins.trainings(75)
    cluster.submit()
    stand_ins.fail(("scontrol requeue", 9))
    assert cluster.run_job() == [1]
    assert "queueing job 123 again failed; submit it again, and it resumes." in cluster.log()
