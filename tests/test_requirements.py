"""setup.cfg names what the package imports, and nothing else."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIG = configparser.ConfigParser()
_CONFIG.read(_ROOT / "setup.cfg")
_OPTIONAL = {"torch", "tensorflow_datasets", "datasets", "pyarrow", "wandb", "kubernetes"}
# imported by name, when a source of their kind is opened
_BY_NAME = {"tensorflow_datasets", "datasets"}


def _names(lines):
    """Normalised distribution names of requirement lines."""
    found = (re.match(r"[\w.\-]+", line.strip()) for line in lines.splitlines())
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name}


def _imported(folder):
    """Top-level names that the files of a folder import, absolutely and not from the standard
    library.
    """
    names = set()
    for path in (_ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {folder, "__future__"}


def _distributions(names):
    """The distributions that hold modules of these names.

    Of one that is not installed, the name itself.
    """
    known = importlib.metadata.packages_distributions()
    return {_own(name, known.get(name, [name])) for name in names}


def _own(name, distributions):
    normal = {re.sub(r"[-_.]+", "-", one).lower() for one in distributions}
    same = re.sub(r"[-_.]+", "-", name).lower()
    return same if same in normal else min(normal)


def test_what_every_installation_gets_is_what_the_package_imports():
    declared = _names(_CONFIG["options"]["install_requires"])
    used = _distributions(_imported("t2i_jax") - _OPTIONAL)
    assert used - declared == set(), "imported and not declared"
    assert declared - used == set(), "declared and not imported"


def test_what_is_imported_where_it_is_installed_is_an_extra():
    extras = _CONFIG["options.extras_require"]
    declared = _names("\n".join(extras[name] for name in ("torch", "data", "wandb")))
    used = (_imported("t2i_jax") | _BY_NAME) & _OPTIONAL
    assert _distributions(used) == declared


def test_what_the_tests_import_is_what_they_install():
    everywhere = _CONFIG["options"]["install_requires"]
    declared = _names(everywhere + _CONFIG["options.extras_require"]["test"])
    used = _distributions(_imported("tests") - {"t2i_jax"})
    assert used - declared == set(), "imported and not declared"


@pytest.mark.parametrize("extra", ["data", "docs", "dev"])
def test_the_tests_need_what_the_checks_need(extra):
    lines = set(_CONFIG["options.extras_require"][extra].splitlines()) - {"pre-commit>=4,<5"}
    assert lines <= set(_CONFIG["options.extras_require"]["test"].splitlines())
