"""A system that lives in tests/toy_system, made known by one line, goes the whole way without an
edit of the package.

That it compiles for a slice is in tests/cli/test_compile.py, with what else loads the TPU compiler.
"""

import ast
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import t2i_jax as t2i
from t2i_jax import runs, systems
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.runs.recipe import changed, load_recipe
from t2i_jax.text import learned
from tests.e2e.command import inside, refused, run, t2i_command
from tests.flags import FAST
from tests.toy_system import pair

_RECIPE = pathlib.Path(__file__).parent.parent / "toy_system" / "recipe.py"
_CAPTION = "a red circle above a blue square"
_PACKAGE = pathlib.Path(t2i.__file__).parent


# what a process of these tests begins with
_FEW = "from t2i_jax.text import learned\nlearned._CAPTIONS_FOR_VOCABULARY = 500\n"


@pytest.fixture(scope="module", autouse=True)
def few_captions():
    """A vocabulary is trained on 500 captions, here and in the processes that train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "_CAPTIONS_FOR_VOCABULARY", 500)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("toy") / "run"
    out = inside("train", _RECIPE, "--workdir", workdir).stdout
    assert "done:" in out
    return workdir


def test_it_trains_its_part_first_and_draws_its_own_preview(trained):
    assert (trained / "mean" / "checkpoints" / "4").is_dir() and (
        trained / "checkpoints" / "4"
    ).is_dir()
    parts = json.loads((trained / "parts.json").read_text())
    assert parts["mean"]["folder"] == "mean" and len(parts["mean"]["fingerprint"]) == 16
    assert '"eval/spread"' in (trained / "metrics.jsonl").read_text()
    assert Image.open(trained / "samples" / "0000004.png").size == (32, 8)  # four swatches
    assert Image.open(trained / "mean" / "samples" / "0000004.png").size == (8, 8)


def test_killed_and_started_again_it_ends_bit_for_bit_where_it_would_have(trained, tmp_path):
    """SIGKILL once its first checkpoint is there.

    Steps take half a second so that it is not done by then. Its part is trained already.
    """
    slow = tmp_path / "slow.py"
    slow.write_text(
        f"{_FEW}import time, jax\n"
        "from t2i_jax.data import pipeline\n"
        "from tests.toy_system.recipe import get_config as fast\n"
        "before = pipeline.Batches.__next__\n"
        "pipeline.Batches.__next__ = lambda self: (time.sleep(0.5), before(self))[1]\n"
        "def get_config():\n    return fast()\n"
    )
    more = f"mean={trained / 'mean'}", "--workdir", tmp_path / "run"
    command = t2i_command("train", slow, *more)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / "run" / "checkpoints" / "2" / "commit_success.txt"
    limit = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert (
        process.wait() == -signal.SIGKILL and not (tmp_path / "run" / "checkpoints" / "4").exists()
    )
    inside("train", _RECIPE, *more)
    mine, theirs = (runs.load(run).weights["toy"]["net"] for run in (tmp_path / "run", trained))
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name])


def test_weights_lie_alike_after_training_loading_and_exporting(trained, tmp_path):
    """One program is compiled for all three: it depends on where its arrays lie."""
    runs.export(trained, tmp_path / "system")
    recipe = runs.load_run_recipe(trained)  # all of its steps are done
    ended = runs.train(recipe, trained, hooks=lambda recipe, build_system: ())
    wanted = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for system in (ended, runs.load(trained), runs.load(tmp_path / "system")):
        for leaf in jax.tree.leaves((system.weights, system.frozen)):
            assert leaf.sharding == wanted and leaf.committed


def test_sample_takes_its_options_and_lists_them(trained, tmp_path):
    shown = inside("sample", trained, "--help").stdout
    assert (
        "--noise" in shown and "standard deviation of the noise" in shown and "--top-k" not in shown
    )
    assert "1.5" in shown  # what the recipe sets
    inside("sample", trained, _CAPTION, "--count", 2, "--out", tmp_path / "a")
    inside(
        "sample",
        trained,
        _CAPTION,
        "--count",
        2,
        "--guidance",
        1.5,
        "--noise",
        0,
        "--out",
        tmp_path / "b",
    )
    inside("sample", trained, _CAPTION, "--count", 2, "--guidance", 0, "--out", tmp_path / "c")
    plain, same, mean = (np.asarray(Image.open(tmp_path / name / "000-00.png")) for name in "abc")
    np.testing.assert_array_equal(plain, same)
    assert np.ptp(plain, axis=(0, 1)).max() == 0 and not np.array_equal(plain, mean)
    assert (
        "noise=-1 is below 0" in inside("sample", trained, _CAPTION, "--noise", -1, status=2).stderr
    )
    told = inside("sample", trained, _CAPTION, "--nois", 1, status=2).stderr
    assert "--nois is no option" in told and "did you mean '--noise'?" in told
    with pytest.raises(UserError, match="give ToyOptions"):
        runs.load(trained).generate([_CAPTION], t2i.PartiOptions())


def test_it_is_evaluated_exported_and_loaded(trained, tmp_path):
    assert "error: " in inside("eval", trained / "mean").stdout
    inside("eval", trained, "evaluation.options.guidance=1.0", "evaluation.pictures=8")
    assert (trained / "samples" / "heldout.png").is_file()
    for words, read in (
        (("eval", trained, "train.steps=9"), "evaluation.* and data.* can be changed"),
        (("eval", trained, "task.image_size=9"), "evaluation.* and data.* can be changed"),
        (
            ("evaluate", trained, "evaluation.pictures=9", "--prompts", "a.txt"),
            "of which evaluation.options.* can be changed; leave it out.",
        ),
    ):
        assert read in refused(*words)
    inside("export", trained, tmp_path / "system")
    assert sorted(path.name for path in (tmp_path / "system").iterdir()) == [
        "mean", "parts.json", "system.json", "text_tokenizer", "text_tokenizer.json",
        "weights.safetensors",
    ]  # fmt: skip
    ours, theirs = (
        runs.load(run).generate([_CAPTION], seed=1) for run in (trained, tmp_path / "system")
    )
    np.testing.assert_array_equal(ours, theirs)
    inside("eval", tmp_path / "system", "evaluation.pictures=4")
    (tmp_path / "system" / "partial-report.html").touch()
    inside("export", tmp_path / "system", tmp_path / "again")  # what it is, not what was made of it
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "mean", "parts.json", "system.json", "text_tokenizer", "text_tokenizer.json",
        "weights.safetensors",
    ]  # fmt: skip
    for name in ("weights.safetensors", "system.json", "parts.json"):
        one, other = (tmp_path / run / name for run in ("system", "again"))
        assert one.read_bytes() == other.read_bytes()


def test_weights_go_to_pytorch_and_back(trained, tmp_path):
    inside("convert", "to-torch", trained, tmp_path / "toy.pt")
    state = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert set(state) == {"hidden", "out", "colour"} and state["hidden"].shape == (8, 8)
    inside("convert", "from-torch", tmp_path / "toy.pt", tmp_path / "back", "toy.image_size=4")
    inside("convert", "to-torch", tmp_path / "back", tmp_path / "again.pt")
    for name, value in torch_io.read(tmp_path / "again.pt").items():
        np.testing.assert_array_equal(value, state[name].numpy())
    system = runs.load(tmp_path / "back")
    embeds = np.ones((1, 3, 8), np.float32), np.ones((1, 3), bool)
    assert system.generate(embeds).shape == (1, 4, 4, 3)


def test_another_part_is_refused_by_its_fingerprint(trained, tmp_path):
    recipe = load_recipe(_RECIPE)
    runs.export(trained, tmp_path / "copy")
    runs.train(
        changed(recipe.parts["mean"], ["train.seed=1", "train.eval_every=0"]), tmp_path / "other"
    )
    small = ["train.steps=1", "train.eval_every=0"]
    runs.train(changed(recipe, [*small, f"mean={trained / 'mean'}"]), tmp_path / "run")
    with pytest.raises(
        UserError, match="parts.mean=.* has other weights .* than this run was begun with"
    ):
        runs.train(changed(recipe, [*small, f"mean={tmp_path / 'other'}"]), tmp_path / "run")
    with pytest.raises(
        UserError, match="parts.mean is a recipe, and this run was begun with a finished part"
    ):
        runs.train(changed(recipe, small), tmp_path / "run")
    with pytest.raises(
        UserError, match="parts.mean.train.steps=9 would train further .* at step 4"
    ):
        runs.train(changed(recipe, ["mean.train.steps=9"]), trained)
    with pytest.raises(
        UserError, match="parts.mean is a run of ToyTask; give one of MeanColourTask"
    ):
        runs.train(changed(recipe, [*small, f"mean={trained}"]), tmp_path / "wrong")


def test_a_task_without_objectives_joins_parts_that_inherit_from_it(tmp_path):
    """One recipe: the mean colour, then a toy that has no part of its own and takes the mean from
    around it.
    """
    recipe = pair.get_config()
    system = runs.train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "recipe.json").is_file() and not (
        tmp_path / "run" / "checkpoints"
    ).exists()
    assert not (tmp_path / "run" / "toy" / "mean").exists()
    # pages tell the commands, and where those of the parts are
    for home in ("run", "run/toy"):
        inside("report", tmp_path / home)
    assert "<h2>Commands</h2>" in (tmp_path / "run" / "report.html").read_text()
    page = (tmp_path / "run" / "toy" / "report.html").read_text()
    assert "Its own page is ../mean/report.html." in page
    assert (
        json.loads((tmp_path / "run" / "toy" / "parts.json").read_text())["mean"]["folder"]
        == "../mean"
    )
    images = system.generate([_CAPTION])
    again = runs.train(recipe, tmp_path / "run")  # nothing is trained anew
    runs.export(tmp_path / "run", tmp_path / "system")
    runs.export(tmp_path / "run" / "toy", tmp_path / "alone")
    for other in (again, *(runs.load(tmp_path / name) for name in ("run", "system"))):
        np.testing.assert_array_equal(other.generate([_CAPTION]), images)
    np.testing.assert_array_equal(runs.load(tmp_path / "alone").generate([_CAPTION]), images)
    assert runs.load(tmp_path / "run" / "toy").generate([_CAPTION]).shape == images.shape


_EIGHT = """
import sys
import numpy as np
from t2i_jax import runs
from t2i_jax.runs.recipe import changed
from tests.toy_system.recipe import get_config

run, workdir = sys.argv[1:]
shape = {"data": 2, "fsdp": 2, "tensor": 2}
alone, split = runs.load(run), runs.load(run, mesh=shape)
assert any("tensor" in str(a.sharding.spec) for a in split.weights["toy"]["net"].values())
one, eight = (s.generate(["a red circle", "a blue square"]).astype(int) for s in (alone, split))
assert np.max(np.abs(one - eight)) <= 1
overrides = ["train.eval_every=0", f"mean={run}/mean", f"train.mesh={shape}"]
net = runs.train(changed(get_config(), overrides), workdir).weights["toy"]["net"]
for name, mine in alone.weights["toy"]["net"].items():
    np.testing.assert_allclose(np.asarray(net[name]), mine, atol=1e-4)
"""


def test_eight_devices_train_and_sample_what_one_does(trained, tmp_path):
    flags = f"--xla_force_host_platform_device_count=8 {FAST}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", _FEW + _EIGHT, trained, tmp_path / "meshed"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _in_code(path):
    """Names, attributes, and modules with their imported names ("systems.clip.task") of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (name for alias in node.names for name in (alias.name, alias.asname or ""))
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def _in_texts(path):
    """The words of its strings, docstrings among them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.replace("`", " ").replace("(", " ").replace(",", " ").split()


# These are words of metrics and of texts too: `--clip`, a caption's tokenizer.
_WORDS = {"clip", "tokenizer"}


def _systems_named(path):
    classes = {name for name, home in systems.names().items() if not home.startswith("tests.")}
    packages = set(systems.SYSTEMS) - {"toy"}
    homes = {f"systems.{name}" for name in packages}
    for name in _in_code(path):
        is_imported = any(f"{home}." in f"{name}." for home in homes)
        if is_imported or name in classes or name.lower() in packages - _WORDS:
            yield name
    for word in _in_texts(path):
        if word in classes or word.lower() in packages - _WORDS:
            yield word


@pytest.mark.parametrize("floor", ["runs", "cli", "train", "data", "aot", "cluster"])
def test_no_upper_floor_names_a_system(floor):
    for path in sorted((_PACKAGE / floor).rglob("*.py")):
        found = set(_systems_named(path))
        assert not found, (
            f"{path.relative_to(_PACKAGE)} names {found}; what only one system knows, that system "
            "says"
        )


@pytest.mark.parametrize(
    "line",
    [
        "from t2i_jax.systems.clip.task import ClipTask",
        "from t2i_jax.systems import clip as of_images",
        "import t2i_jax.systems.tokenizer.task",
        "def late():\n    from t2i_jax.systems.imagen import system",
        "made = t2i_jax.ClipTask(clip)",
        "isinstance(task, PartiTask)",
        "kind = 'maskgit'",
    ],
)
def test_the_rule_itself_finds_the_name_of_a_system(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    assert set(_systems_named(tmp_path / "module.py"))


def test_registered_from_outside_another_process_samples_its_run(trained, tmp_path, monkeypatch):
    """Nothing in that process has imported the recipe, which adds the row itself."""
    monkeypatch.setenv("T2I_SYSTEMS", "toy=tests.toy_system")
    run("sample", trained, _CAPTION, "--count", "1", "--out", tmp_path)
    assert list(tmp_path.glob("*.png"))
    monkeypatch.setenv("T2I_SYSTEMS", "toy")
    sentence = "T2I_SYSTEMS='toy' is not of the form name=package"
    assert sentence in refused("sample", trained, _CAPTION, by=run)
    monkeypatch.setitem(systems.SYSTEMS, "toy", "nowhere.toy")
    sentence = "the system 'toy' is registered as the package nowhere.toy, which can't"
    assert sentence in refused("sample", trained, _CAPTION)
