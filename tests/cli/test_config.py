"""`t2i config`: what it prints of a field can be given to `t2i train`."""

import pathlib
import re

import pytest

from t2i_jax.cli import config
from t2i_jax.runs.recipe import changed, load_recipe

_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
_LINE = re.compile(r"[* ] (\S+?)=(.*?)(   \(default .*)?")


@pytest.mark.parametrize("recipe", ["muse/digits.py", "parti/shapes.py"])
def test_each_line_of_a_value_is_an_override_with_that_value(recipe):
    recipe = load_recipe(_CONFIGS / recipe)
    lines = [_LINE.fullmatch(line) for line in config.lines(recipe) if line[2:3].strip()]
    said = {found[1]: found[2] for found in lines if found}
    for path, text in said.items():
        is_type = text[:1].isupper() and text not in ("None", "True", "False")
        is_above = path.endswith("parts")  # its recipes follow, without "parts." in their paths
        if not is_type and not is_above and not any(other.startswith(f"{path}.") for other in said):
            assert changed(recipe, [f"{path}={text}"]) == recipe, path
    assert len(said) > 50
