"""What `t2i` imports: help and mistakes nothing that computes, a training no more than it needs."""

import subprocess
import sys

from t2i_jax.cli.main import COMMANDS

# Most trainings do without these, or come to them late.
_LATE = (
    "scipy",
    "grain",
    "t2i_jax.convert.unet",
    "t2i_jax.eval.extractors",
    "t2i_jax.runs.scoring",
    "t2i_jax.runs.torch",
    "PIL.IcoImagePlugin",
    "torch",
    "transformers",
    "tokenizers",
)

_CODE = """
import contextlib, io, sys
from t2i_jax.cli import main as cli

def said(*words):
    sys.argv, out = ["t2i", *words], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        with contextlib.suppress(SystemExit):
            cli.main()
    return out.getvalue()

def loaded(names):
    return [name for name in names if name in sys.modules]

assert said("--version").startswith("t2i_jax ")
for words in {helped!r}:
    assert said(*words, "--help").startswith("usage: t2i"), words
assert "did you mean 'train'" in said("trian")
assert "CONFIG is missing" in said("train")
assert "did you mean '--workdir'" in said("train", "a.py", "--wrkdir", "b")
assert not loaded(["jax", "flax", "optax", "orbax", "PIL"]), loaded(["jax", "flax", "PIL"])

from t2i_jax import runs
assert not loaded(["jax"])
from t2i_jax.runs import evaluation, training
evaluation.evaluate = lambda *_: {{"figure": 1.0}}
training.train = lambda *_, **__: None
assert "figure: 1" in said("train", "configs/parti/shapes.py", "--workdir", {workdir!r})
assert loaded(["jax", "orbax.checkpoint"]) and not loaded({late!r}), loaded({late!r})
import jax
assert jax.config.jax_compilation_cache_dir == {cache!r}
assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
"""


def test_help_imports_no_jax_and_a_training_no_more_than_it_needs(tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)  # of the tests
    helped = [(), *((name,) for name in COMMANDS)]
    code = _CODE.format(helped=helped, late=_LATE, workdir=str(tmp_path / "run"), cache=cache)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
