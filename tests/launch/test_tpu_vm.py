"""launch/tpu_vm.sh and its half on the workers: the full life of a slice, what `watch` does, a
failure in each step.
"""

import concurrent.futures
import itertools
import os
import tarfile

import pytest

from tests.launch.stand_ins import ROOT, commands, wait_until

_PLACE = ("--zone", "us-central1-a", "--bucket", "a-bucket")
_CONFIG = "configs/imagen/shapes.py"
_ODD = (
    "train.mesh={'data': 2, 'fsdp': 4}",
    'name="two  words" $HOME `x` \\ *',
    "--mesh",
    "data=2,fsdp=4",
)
_WATCH = ("watch", "tpu", *_PLACE, "--interval", "0", _CONFIG)


@pytest.fixture
def tpu_vm(stand_ins):
    """Starts a subcommand for the slice `tpu`."""
    return lambda subcommand, *arguments, **kwargs: stand_ins.start(
        "tpu_vm", subcommand, "tpu", *_PLACE, *arguments, **kwargs
    )


def _verbs(stand_ins):
    """What was asked of gcloud, without the looks: ["create", "scp", "install", ...]."""
    verbs = []
    for call in stand_ins.calls("gcloud"):
        if call[4] == "ssh":
            script = call[call.index("--command") + 1].split("tpu_worker.sh ")[1].split()[0]
            verbs += [script] if script.rstrip(";") != "state" else []
        elif call[4] != "list":
            verbs.append(call[4])
    return verbs


def _state(stand_ins, number=0):
    return (stand_ins.worker(number) / "t2i" / "status").read_text().strip()


def _ended(stand_ins):
    homes = (stand_ins.folder / "workers").iterdir()
    return all((home / "t2i" / "status").exists() for home in homes)


def test_the_full_life_of_a_slice(stand_ins, tpu_vm):
    stand_ins.trainings("wait", "preempted", 0)
    stand_ins.cloud(workers=2)
    tpu_vm("create", "--spot")
    assert "node READY, request in the queue absent" in tpu_vm("status").stdout
    assert tpu_vm("status").stdout.count("t2i-state=absent") == 2
    tpu_vm("install")
    home = stand_ins.worker(1) / "t2i"
    assert (home / "src" / "t2i_jax" / "types.py").read_text() == (
        ROOT / "t2i_jax" / "types.py"
    ).read_text()
    assert (home / "src" / "bucket").resolve() == stand_ins.folder / "bucket"
    assert tpu_vm("status").stdout.count("t2i-state=none on worker-") == 2

    # It outlives the connection, in a session of its own, and is not started beside itself.
    tpu_vm("run", _CONFIG, *_ODD)
    wait_until(
        lambda: all((stand_ins.folder / f"waits-worker-{number}").exists() for number in (0, 1))
    )
    assert tpu_vm("status").stdout.count("t2i-state=running") == 2
    assert os.getsid(int((home / "pid").read_text())) != os.getsid(0)
    said = stand_ins.start("tpu_vm", "run", "tpu", *_PLACE, _CONFIG, status=1).stderr
    assert (
        said.count("run: a training runs here already; ") == 2
        and "run: starting the training on tpu failed" in said
    )
    assert "a training runs here; stop it first" in tpu_vm("install", status=1).stderr
    command = ["train", _CONFIG, *_ODD, "--workdir", "bucket/tpu"]
    assert sorted(stand_ins.trained()) == [("worker-0", command), ("worker-1", command)]
    assert (stand_ins.folder / "bucket" / "tpu").is_dir()

    log = tpu_vm("logs", "--worker", "1", "--no-follow").stdout
    assert (
        "training 0 on worker-1" in log and "worker-0" not in log and _ODD[0].split("'")[1] in log
    )
    tpu_vm("logs")
    assert [call[-2:] for call in stand_ins.calls("tail")][-1][0] == "-F"

    tpu_vm("stop")
    wait_until(lambda: _ended(stand_ins))
    assert _state(stand_ins) == _state(stand_ins, 1) == "75"
    stand_ins.forget()

    # watch starts it again; the machine is taken; it makes another one, and the training comes to
    # its end there.
    watched = stand_ins.start("tpu_vm", *_WATCH, "--spot").stdout
    # the second of the two workers may say that it was taken when the first was already deleted
    verbs = [verb for verb, _ in itertools.groupby(_verbs(stand_ins))]
    assert verbs == ["start", "delete", "create", "scp", "install", "start"]
    assert (
        "node PREEMPTED" in watched and "tpu: the training is done; the slice still runs" in watched
    )
    assert (
        _state(stand_ins) == "0" and [who for who, _ in stand_ins.trained()].count("worker-0") == 2
    )
    assert all("--spot" in call for call in stand_ins.calls("gcloud") if call[4] == "create")

    tpu_vm("delete")
    assert stand_ins.cloud()["node"] is None and not (stand_ins.folder / "workers").exists()
    assert "nothing to delete" in tpu_vm("delete").stdout


def test_watch_waits_in_the_queue_and_asks_again_when_the_request_is_suspended(stand_ins, tpu_vm):
    stand_ins.trainings("preempted", 0)
    coming = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    stand_ins.cloud(coming=[*coming, "ACTIVE"])
    watched = stand_ins.start("tpu_vm", *_WATCH, "--queued").stdout
    life = ["create", "scp", "install", "start"]
    assert _verbs(stand_ins) == [*life, "delete", *life]
    requests = [call for call in stand_ins.calls("gcloud") if call[4] in ("create", "delete")]
    assert {call[3] for call in requests} == {"queued-resources"} and "--force" in requests[1]
    assert [state for state in [*coming, "SUSPENDED"] if state not in watched] == []


def test_watch_goes_on_with_what_the_queue_gave_without_being_told(stand_ins, tpu_vm):
    stand_ins.trainings("preempted", 0)
    tpu_vm("queue")
    stand_ins.cloud(coming=["ACTIVE", "ACTIVE"])
    stand_ins.start("tpu_vm", *_WATCH)
    assert {call[3] for call in stand_ins.calls("gcloud") if call[4] == "create"} == {
        "queued-resources"
    }


def test_watch_never_starts_a_mistake_again(stand_ins):
    stand_ins.trainings(2)
    said = stand_ins.start("tpu_vm", *_WATCH, status=2).stderr
    assert "the training on tpu ended with 2, a mistake in what was given; " in said
    assert _verbs(stand_ins).count("start") == 1


def test_watch_takes_no_training_for_its_own_but_the_one_it_is_given(stand_ins, tpu_vm):
    stand_ins.trainings(2, "wait", 0)
    other = (*_WATCH[:-1], "configs/parti/shapes.py")
    stand_ins.start("tpu_vm", *_WATCH, status=2)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # the mistake is mended: it starts again
        watching = pool.submit(stand_ins.start, "tpu_vm", *_WATCH)
        wait_until((stand_ins.folder / "waits-worker-0").exists, seconds=60)
        said = stand_ins.start("tpu_vm", *other, status=2).stderr
        assert "another training runs on tpu; " in said
        tpu_vm("stop")
        assert "training running" in watching.result().stdout
    assert "the training is done" in stand_ins.start("tpu_vm", *other).stdout
    assert [arguments[1] for _, arguments in stand_ins.trained()] == [_CONFIG] * 3 + [other[-1]]


def test_watch_starts_a_failure_again_a_limited_number_of_times(stand_ins):
    stand_ins.trainings(1)
    said = stand_ins.start("tpu_vm", *_WATCH, "--max-failures", "2", status=1).stderr
    assert "ended with 1, 3 times in a row" in said and _verbs(stand_ins).count("start") == 3


def test_what_was_saved_between_two_failures_starts_the_count_anew(stand_ins):
    stand_ins.trainings(1, 75, 1, 75, 75, 0)
    stand_ins.start("tpu_vm", *_WATCH, "--max-failures", "1")
    assert _verbs(stand_ins).count("start") == 6


def test_a_request_that_fails_again_and_again_ends_watch(stand_ins):
    stand_ins.cloud(coming=["FAILED"] * 9)
    said = stand_ins.start("tpu_vm", *_WATCH, "--queued", "--max-failures", "1", status=1).stderr
    assert "watch: 2 steps in a row failed on tpu" in said
    assert _verbs(stand_ins) == ["create", "delete", "create"]


def test_watch_outlives_a_step_that_fails_once(stand_ins):
    stand_ins.fail(
        *((words, 1) for words in ("tpus tpu-vm scp", "pip install", "nodes/tpu$")),
        *((f"tpu_worker.sh {verb}", 1) for verb in ("start", "state")),
    )
    stand_ins.cloud(workers=2)
    watched = stand_ins.start("tpu_vm", *_WATCH, "--max-failures", "4")
    assert _verbs(stand_ins)[-1] == "start" and "the training is done" in watched.stdout
    assert watched.stderr.count(" failed with status ") >= 5


def test_a_worker_that_was_started_again_mounts_the_bucket_again(stand_ins, tpu_vm):
    tpu_vm("create")
    tpu_vm("install")
    (stand_ins.worker() / "t2i" / "bucket").unlink()
    tpu_vm("run", _CONFIG)
    wait_until(lambda: _ended(stand_ins))
    assert _state(stand_ins) == "0" and len(stand_ins.calls("gcsfuse")) == 2
    options = stand_ins.calls("gcsfuse")[0]
    assert (
        options[1] == "--implicit-dirs"
        and options[options.index("--rename-dir-limit") + 1] == "100000"
    )
    assert (
        options[options.index("--metadata-cache-ttl-secs") + 1] == "0" and options[-2] == "a-bucket"
    )


def test_a_second_install_takes_the_new_checkout_and_keeps_the_environment(stand_ins, tpu_vm):
    tpu_vm("create")
    tpu_vm("install")
    environment = stand_ins.worker() / "t2i" / "venv" / "bin" / "python"
    made = environment.stat().st_mtime_ns
    (stand_ins.worker() / "t2i" / "src" / "old").touch()
    tpu_vm("install")
    assert not (stand_ins.worker() / "t2i" / "src" / "old").exists()
    assert environment.stat().st_mtime_ns == made
    assert [call[1] for call in stand_ins.calls("uv")] == ["venv", "pip", "pip"]
    assert len(stand_ins.calls("gcsfuse")) == 1
    stand_ins.start("tpu_vm", "install", "tpu", *_PLACE[:-1], "another-bucket")
    assert stand_ins.calls("gcsfuse")[1][-2] == "another-bucket"
    with tarfile.open(stand_ins.folder / "tmp" / "t2i_jax-tpu.tar.gz") as archive:
        names = archive.getnames()
    assert {"t2i_jax/types.py", "launch/tpu_worker.sh", _CONFIG, "setup.cfg", "README.md"} <= set(
        names
    )
    assert not [name for name in names if "__pycache__" in name or name.startswith(".")]


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v4-16", "tpu-ubuntu2204-base"),
    ],
)
def test_each_kind_of_tpu_gets_its_software(tpu_vm, accelerator, version):
    for subcommand, option in (("create", "--version"), ("queue", "--runtime-version")):
        [call] = commands(tpu_vm(subcommand, "--accelerator", accelerator, "--dry-run").stdout)
        assert call[call.index(option) + 1] == version
        [call] = commands(
            tpu_vm(subcommand, "--accelerator", accelerator, "--runtime", "x", "--dry-run").stdout
        )
        assert call[call.index(option) + 1] == "x"


def test_a_dry_run_of_watch_shows_the_whole_life(stand_ins, tpu_vm):
    printed = commands(tpu_vm("watch", "--queued", "--dry-run", _CONFIG).stdout)
    verbs = [call[4] for call in printed if call[0] == "gcloud"]
    assert verbs == ["list", "list", "delete", "delete", "create", "scp", "ssh", "ssh", "ssh"]
    assert not stand_ins.calls("gcloud")


@pytest.mark.parametrize("made", ["create", "queue"])
def test_a_dry_run_of_delete_shows_both_ways_and_a_run_takes_one(stand_ins, tpu_vm, made):
    tpu_vm(made)
    stand_ins.forget()
    printed = commands(tpu_vm("delete", "--dry-run").stdout)
    tpu_vm("delete")
    ran = stand_ins.calls("gcloud")
    assert ran == [*printed[:2], printed[2 if made == "queue" else 3]] and len(printed) == 4


@pytest.mark.parametrize(
    ("subcommand", "broken", "step"),
    [
        (
            "create",
            "tpu-vm create",
            "create: asking for slice tpu (v5litepod-16 in us-central1-a) failed with",
        ),
        (
            "queue",
            "queued-resources create",
            "queue: asking for slice tpu (v5litepod-16 in us-central1-a) failed",
        ),
        ("install", "tpu-vm scp", "install: copying to the workers of tpu failed"),
        ("install", "sudo curl", "install: fetching the key of gcsfuse failed"),
        ("install", "sudo tee", "install: naming gcsfuse's source failed"),
        ("install", "update", "install: reading the list of packages failed"),
        ("install", "install -y gcsfuse", "install: installing gcsfuse failed"),
        ("install", "gcsfuse --implicit-dirs", "mounting the bucket a-bucket failed"),
        ("install", "curl -LsSf", "install: installing uv failed"),
        ("install", "uv venv", "install: making a Python environment failed"),
        ("install", "pip install", "install: installing t2i_jax failed"),
        ("run", "tpu-vm ssh", "run: starting the training on tpu failed"),
        ("logs", "tpu-vm ssh", "logs: reading the log of worker 0 of tpu failed"),
        ("stop", "tpu-vm ssh", "stop: stopping the training on tpu failed"),
        ("status", "queued-resources list", "looking for tpu in us-central1-a failed"),
        ("status", "tpu-vm list", "looking for tpu in us-central1-a failed"),
        ("status", "tpu-vm ssh", "status: asking the workers of tpu failed"),
        ("delete", "tpu-vm list", "looking for tpu in us-central1-a failed"),
        ("delete", "tpu-vm delete", "delete: deleting the node tpu failed"),
    ],
)
def test_a_step_that_fails_is_named_and_nothing_follows_it(
    stand_ins, tpu_vm, subcommand, broken, step
):
    if subcommand not in ("create", "queue"):
        tpu_vm("create")
    stand_ins.fail((broken, 9))
    said = tpu_vm(subcommand, *([_CONFIG] if subcommand == "run" else []), status=1).stderr
    assert step in said and all(
        line.endswith(".") for line in said.splitlines() if line.startswith("launch/")
    )
    assert (
        broken in " ".join(stand_ins.calls("gcloud")[-1])
        or stand_ins.calls("gcloud")[-1][4] == "ssh"
    )


def test_a_step_that_failed_is_done_when_its_cause_is_gone(stand_ins, tpu_vm):
    stand_ins.fail(
        *((words, 1) for words in ("tpu-vm create", "tpu-vm scp", "pip install", "tpu-vm delete"))
    )
    for subcommand, tries in (("create", 2), ("install", 3), ("delete", 2)):
        for number in range(tries):
            tpu_vm(subcommand, status=int(number < tries - 1))
    assert stand_ins.cloud()["node"] is None


def test_a_request_that_cannot_be_deleted_is_named(stand_ins, tpu_vm):
    tpu_vm("queue")
    stand_ins.fail(("queued-resources delete", 9))
    assert (
        "delete: deleting the request tpu and its node failed" in tpu_vm("delete", status=1).stderr
    )


def test_what_is_half_installed_counts_as_absent_and_does_not_start(stand_ins, tpu_vm):
    tpu_vm("create")
    stand_ins.fail(("pip install", 9))
    tpu_vm("install", status=1)
    assert tpu_vm("status").stdout.count("t2i-state=absent") == 1
    assert (
        "run: t2i_jax is not installed here; use install first."
        in tpu_vm("run", _CONFIG, status=1).stderr
    )


def test_logs_and_stop_before_anything_was_started(tpu_vm):
    tpu_vm("create")
    tpu_vm("install")
    assert "logs: nothing was started here yet; use run." in tpu_vm("logs", status=1).stderr
    assert tpu_vm("stop").stdout.count("no training runs on worker-0") == 1
