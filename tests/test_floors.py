"""The package is a house with floors: a module imports only from lower ones.

Importing it starts nothing heavy.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "t2i_jax"

# The floors that each part may import from; a part may always import from itself, except where
# `_ALONE` says so.
_LOW = {
    "config", "types", "errors", "cluster", "files", "typeset", "paths", "words", "terminal",
    "seeds", "values", "heap", "tracing", "compiler",
}  # fmt: skip
_ALLOWED = {
    "config": _LOW,
    "types": _LOW,
    "errors": _LOW,
    "cluster": _LOW,
    "files": _LOW,
    "words": _LOW,
    "paths": _LOW,
    "seeds": _LOW,
    "values": _LOW,
    "heap": _LOW,
    "tracing": _LOW,
    "compiler": _LOW,
    "terminal": _LOW,
    "typeset": _LOW,
    "foreign": _LOW,
    "pixels": _LOW,
    "sharding": _LOW,
    "on_host": _LOW | {"sharding"},
    "nn": _LOW | {"sharding"},
    "diffusion": _LOW | {"sharding", "pixels"},
    "decoding": _LOW | {"sharding"},
    "text": _LOW | {"foreign", "sharding", "nn", "diffusion", "decoding"},
    "models": _LOW | {"sharding", "pixels", "nn", "diffusion", "decoding", "text"},
    "convert": _LOW | {"foreign", "sharding", "pixels", "nn", "text", "models"},
    "eval": _LOW | {"foreign", "sharding", "pixels", "nn", "text", "models", "convert", "data"},
    "systems": _LOW
    | {"foreign", "sharding", "pixels", "nn", "diffusion", "decoding", "text", "models", "convert"}
    | {"eval", "data", "on_host"},
    "train": _LOW | {"foreign", "sharding", "on_host"},
    "aot": _LOW | {"sharding", "train"},
    "data": _LOW | {"foreign"},
}
_TOP = {  # floor 7 may import everything
    "runs", "quickstart", "cli", "__init__",
}  # fmt: skip
_TORCH_HOMES = {"convert/torch_io.py", "foreign/torch_file.py"}


def _part(module: str) -> str:
    """ "t2i_jax.nn.attention" -> "nn"; the package itself is "__init__"."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def _imports(path: pathlib.Path, tree: ast.AST):
    """(line, absolute module) of every import of a file, inside functions too."""
    package = ["t2i_jax", *path.relative_to(_PACKAGE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            if home == "t2i_jax":  # `from t2i_jax import sharding` names a module, not an attribute
                yield from ((node.lineno, f"t2i_jax.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, home


def _violations(files: dict[pathlib.Path, str]) -> list[str]:
    found = []
    for path, source in files.items():
        where = path.relative_to(_PACKAGE)
        part = where.parts[0].removesuffix(".py")
        allowed = None if part in _TOP else _ALLOWED.get(part)
        if allowed is None and part not in _TOP:
            found.append(f"{where}: {part!r} has no floor; give it one in this test")
            continue
        for line, module in _imports(path, ast.parse(source)):
            if (
                module.split(".")[0] in ("torch", "torchvision")
                and where.as_posix() not in _TORCH_HOMES
            ):
                found.append(
                    f"{where}:{line} imports {module}; only {', '.join(_TORCH_HOMES)} does"
                )
            if module.split(".")[0] == "tensorflow":
                found.append(f"{where}:{line} imports {module}")
            if module.split(".")[0] != "t2i_jax" or allowed is None:
                continue
            if _part(module) != part and _part(module) not in allowed:
                found.append(f"{where}:{line} imports {module}, which is not below it")
    return found


def test_no_module_imports_a_floor_that_is_not_below_it():
    files = {path: path.read_text() for path in sorted(_PACKAGE.rglob("*.py"))}
    assert not (found := _violations(files)), "\n".join(found)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("train/loop.py", "from t2i_jax.systems.parti.task import PartiTask"),
        ("nn/norm.py", "import t2i_jax.decoding.logits"),
        ("models/parti.py", "def late():\n    from t2i_jax import systems"),
        ("systems/parti/task.py", "from ...train import loop"),
        ("sharding.py", "from . import nn"),
        ("eval/fid.py", "def late():\n    import torch"),
        ("somewhere/new.py", "import jax"),
    ],
)
def test_the_rule_itself_catches_an_upward_import(where, source):
    assert len(_violations({_PACKAGE / where: source})) == 1


def test_importing_every_module_pulls_in_no_torch_and_starts_no_device():
    code = """
import importlib, pkgutil, sys
import t2i_jax
light = {name.split(".")[0] for name in sys.modules}
assert not light & {"jax", "flax", "torch", "tensorflow", "orbax"}, light
for module in pkgutil.walk_packages(t2i_jax.__path__, "t2i_jax."):
    importlib.import_module(module.name)
heavy = {name.split(".")[0] for name in sys.modules} & {"torch", "torchvision", "tensorflow"}
assert not heavy, heavy
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
