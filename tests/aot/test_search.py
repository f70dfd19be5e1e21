"""The search for the fastest settings of a step: what it tries, in which order, and until when."""

import dataclasses
import importlib.util

import pytest

from t2i_jax.aot import ahead, search
from t2i_jax.runs.recipe import load_recipe
from tests.e2e import tiny


@dataclasses.dataclass(frozen=True)
class _Report:
    fits: bool
    step: float


def test_a_batch_is_parted_only_where_it_does_not_fit_whole():
    def measure(setting):
        fits = setting.remat == "full" or setting.accumulate == 4
        return _Report(fits, 1.0 if setting.remat == "none" else 2.0)

    other = {"data": 4}
    tried = list(search.search(measure, ("none", "full"), (1, 2, 4), (other,)))
    assert [str(setting) for setting, _ in tried] == [
        "remat=none train.accumulate=1",
        "remat=none train.accumulate=2",
        "remat=none train.accumulate=4",
        "remat=full train.accumulate=1",
        "--mesh data=4 remat=none train.accumulate=4",  # the fastest of those above
    ]
    assert search.fastest(dict(tried)) == tried[2][0]


def test_a_batch_that_does_not_divide_is_not_tried():
    def divides(setting):
        return setting.accumulate <= (2 if setting.mesh is None else 1)

    def measure(setting):
        assert divides(setting)  # compiling would refuse it
        return _Report(False, 1.0)

    tried = search.search(measure, ("full",), (1, 2, 4), ({"data": 8},), divides=divides)
    assert [(setting.mesh, setting.accumulate) for setting, _ in tried] == [
        (None, 1), (None, 2), ((("data", 8),), 1),
    ]  # fmt: skip


def test_it_ends_where_another_compilation_would_be_too_long(monkeypatch):
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr(search.time, "monotonic", lambda: float(next(clock)))

    def measure(setting):
        return _Report(True, 1.0)

    found = search.search(measure, ("none", "dots", "full"), (1,), (), seconds=200.0)
    assert [report is not None for _, report in found] == [True, True, False]


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is installed on Linux x86-64 alone"
)
def test_meshes_begin_with_the_fewest_shards_and_split_what_they_name():
    recipe, devices = load_recipe(tiny.__file__), ahead.slice_devices("v5e:2x2")
    # its own is data=4; there are two heads, so that a tensor axis of 4 splits widths alone
    assert search.meshes(recipe.task, recipe.train, devices)[:4] == [
        {"data": 2, "fsdp": 2},
        {"fsdp": 4},
        {"data": 2, "tensor": 2},
        {"fsdp": 2, "tensor": 2},
    ]
