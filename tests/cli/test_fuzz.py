"""Any list of arguments of any command ends with a status that is documented, and never with a
trace.

Work is cut off where it would begin: what was parsed goes as far as the checks of arguments and of
recipes, and no further. HYPOTHESIS_PROFILE=long looks for longer.
"""

import json
import pathlib
import re
import subprocess

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from t2i_jax import runs
from t2i_jax.cli import main as cli
from t2i_jax.runs import check as checks
from t2i_jax.runs.recipe import Recipe, recipe_to_dict
from tests.e2e.command import inside, t2i_command
from tests.toy_system import recipe as toy

_RECIPE = str(pathlib.Path(toy.__file__))
_FLAGS = (
    "--workdir --mesh --profile --topology --search --generate --json --size --split --captions "
    "--no-captions --max-bad-rate --shard-mb --samples --sheet --t5 --max-length --dtype "
    "--batch-size --replace --crop --out --count --seed --upscale --guidance --help -h --version "
    "-- - -x --- --no- --=3"
).split()
_PATHS = (
    "train train.steps train.optim.learning_rate train.optim.name train.mesh train.batch_size "
    "train.optim_by_group train.lr data.source data.image_size data.workers data.split task "
    "task.text task.text.dim task.text.heads task.model task.model.dim task.image_size parts mean "
    "parts.mean mean.train.steps *.train.steps *. . .. init init.run init.misfits mean.init "
    "evaluation.options.guidance evaluation.judge evaluation.options steps"
).split()
_VALUES = (
    "0 1 -1 1e-3 nan inf -inf 1e400 true none None [] () {} {[1]:1} {'data':2} {'data':-1} data=2 "
    "data=² data=1,data=1 slice=0 3:4 4:3 ²:³ v5e:2x2 v9:1x1 folder:nowhere shapes digits foldr:x "
    'webdataset:* hf: nowhere . / ~ ~nobody/x s3://bucket/x adamw \'x "" = == ( [[[ lambda:0 '
    "__import__('os') float16"
).split() + ["", " ", "a caption", "é", "\U0001f600", "9" * 5000, "9" * 400, "(" * 500, "x" * 300]

_anything = st.text(max_size=12)
_value = st.sampled_from(_VALUES) | _anything
_override = st.builds(lambda path, value: f"{path}={value}", st.sampled_from(_PATHS), _value)
_flag = st.sampled_from(_FLAGS) | st.builds(
    lambda flag, value: f"{flag}={value}", st.sampled_from(_FLAGS), _value
)
_word = _flag | _override | _value | st.sampled_from([_RECIPE, "README.md", "setup.cfg"])


def _commands(commands, *words):
    for name, command in commands.items():
        yield from (
            _commands(command, *words, name) if isinstance(command, dict) else [(*words, name)]
        )


_ALL = sorted(_commands(cli.COMMANDS))


_SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class _Begins(Exception):
    """Arguments are accepted, and work would begin."""


@pytest.fixture
def no_work(monkeypatch, tmp_path_factory):
    """In an empty folder, with everything stopped that comes after the checks."""
    monkeypatch.chdir(tmp_path_factory.mktemp("place"))

    def begins(*_, **__):
        raise _Begins

    def check_alone(recipe, workdir, **_):
        assert isinstance(recipe, Recipe)
        checks.check(recipe, with_data=False)
        raise _Begins

    monkeypatch.setattr(runs, "train", check_alone)
    monkeypatch.setattr("t2i_jax.quickstart.run.run", begins)
    monkeypatch.setattr("t2i_jax.quickstart.run.finished", begins)
    monkeypatch.setattr("t2i_jax.aot.ahead.slice_devices", begins)
    monkeypatch.setattr("t2i_jax.data.source.open_source", begins)
    monkeypatch.setattr("t2i_jax.text.t5.T5Text.from_directory", begins)
    monkeypatch.setattr(cli, "start_cache", lambda: None)


def _ends(words):
    """What was printed; fails unless the arguments are refused in one sentence, or accepted."""
    try:
        done = inside(*words)
    except _Begins:
        return None
    except AssertionError:
        done = inside(*words, status=2)
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("t2i: ") and lines[-1].rstrip().endswith((".", "?")), lines
        assert len(lines[-1]) < 1500 and "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("command", _ALL, ids=" ".join)
@pytest.mark.usefixtures("no_work")
@_SHARED
@given(words=st.lists(_word, max_size=5), recipe=st.booleans())
@example(words=[], recipe=False)
@example(words=["train.mesh={[1]:1}"], recipe=True)
@example(words=["*.train.steps=3", "init=nowhere"], recipe=True)
@example(words=["0\r0"], recipe=True)
@example(words=["0\r0=1", "0\r0=2"], recipe=True)
def test_no_arguments_make_a_trace(command, words, recipe):
    _ends([*command, *([_RECIPE] if recipe else []), *words])


@pytest.mark.usefixtures("no_work")
@_SHARED
@given(words=st.lists(_anything | _flag, max_size=4))
def test_no_command_makes_a_trace(words):
    _ends(words)


@pytest.mark.usefixtures("no_work")
@_SHARED
@given(path=st.sampled_from(_PATHS), value=_value)
def test_no_override_makes_a_trace(path, value):
    _ends(["train", _RECIPE, f"{path}={value}"])
    _ends(["config", _RECIPE, f"{path}={value}"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder that says what it would be a run of, without weights."""
    place = tmp_path_factory.mktemp("run")
    (place / "system.json").write_text(json.dumps(recipe_to_dict(toy.get_config())))
    return place


_sampling = st.sampled_from(
    "--guidance --noise --count --seed --out --mesh --upscale --prompts --batch-size --gui".split()
)


@pytest.mark.usefixtures("no_work")
@_SHARED
@given(words=st.lists(_sampling | _value, max_size=6))
@example(words=["a red circle", "--guidance", "2", "--count", "3"])
def test_no_options_of_sampling_make_a_trace(run, words, monkeypatch):
    def begins(*_, **__):
        raise _Begins

    monkeypatch.setattr(runs, "load", begins)
    _ends(["sample", run, *words])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([b"trian"], "'trian' is no command of t2i; did you mean 'train'?"),
        (
            [b"config", b"caf\xe9.py"],
            r"argument 2, 'caf\xe9.py', is not text in UTF-8; write it so.",
        ),
    ],
)
def test_a_process_says_it_too(arguments, told):
    done = subprocess.run([*t2i_command(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == f"t2i: {told}\n"


def test_a_recipe_that_fails_is_told_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    for text, told in (
        ("def get_config(:\n", r"fails at line 1 \(SyntaxError: "),
        (
            "x = 1\nprint(nothing)\n",
            r"fails at line 2 \(NameError: name 'nothing' is not defined\)",
        ),
        ("def get_config():\n    return 1 / 0\n", r"fails at line 2 \(ZeroDivisionError: "),
        ("import sys\nsys.exit(0)\n", r"ends the process at line 2 \(SystemExit: 0\)"),
        (
            "import sys\ndef get_config():\n    sys.exit('text')\n",
            r"ends the process at line 3 \(SystemExit: text\); .* take the exit out",
        ),
        ("raise SystemExit\n", r"ends the process at line 1 \(SystemExit: no message\)"),
        ("def get_config():\n    return 3\n", r"get_config\(\) returned int; return a Recipe"),
    ):
        path.write_text(text)
        for name in (path, path.name):
            assert re.search(told, inside("config", name, status=2).stderr)


def test_a_recipe_is_shown_with_the_docs_of_its_fields():
    told = inside("config", _RECIPE, "train.steps=9", "mean.train.seed=3").stdout
    lines = told.splitlines()
    assert "* train.steps=9   (default 1000)" in lines and "  train.seed=0" in lines
    assert "* mean.train.seed=3   (default 0)" in lines
    at = lines.index("  train.optim.learning_rate=0.0003")
    assert lines[at + 1].strip().startswith("peak value")
    assert max(map(len, lines)) <= 100
    # every name can be given back
    names = [line[2:].split("=")[0] for line in lines if re.match(r"[* ] \w", line)]
    assert len(names) > 60 and len(set(names)) == len(names)
    from t2i_jax.config import leaves
    from t2i_jax.runs.recipe import _in_full

    recipe = toy.get_config()
    shown = {_in_full(recipe, name, "x") for name in names}
    assert set(leaves(recipe)) - {"init"} <= shown | {name.removesuffix(".run") for name in shown}


def test_every_field_of_the_recipes_has_docs():
    root = pathlib.Path(__file__).parents[2] / "configs"
    bare = set()
    for path in sorted(root.rglob("*.py")):
        if "T5Text.from_directory" in path.read_text():
            continue  # it needs the files of a T5
        lines = [*inside("config", path).stdout.splitlines(), ""]
        for line, below in zip(lines, lines[1:]):
            field = re.match(r"[* ] ([\w.]+)=", line)
            entry = field and re.search(r"\.\d+$|\.mesh\.", field[1]) or line.endswith("=Recipe")
            if field and not entry and not below.startswith("      "):
                bare.add(re.sub(r"\.\d+\.", ".", field[1]))
    assert bare == set()


def test_a_run_below_the_home_folder_is_shown_as_any_other(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    assert inside("config", f"~/{run.name}").stdout == inside("config", run).stdout
