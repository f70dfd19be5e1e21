"""Configurations: to JSON and back, overrides, differences, and refusals that name field, value and
remedy.
"""

import dataclasses
import json
from collections.abc import Mapping

import flax.linen as nn
import pytest

from t2i_jax.config import differences, from_dict, idle, one_of, override, to_dict
from t2i_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    name: str = "adam"
    widths: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    by_group: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    steps: int = 3
    limit: float | None = None
    on: bool = False
    hidden: int = dataclasses.field(default=7, init=False)


class Net(nn.Module):
    width: int = 4
    dtype: str = "float32"
    inner: nn.Module | None = None


_KNOWN = {cls.__name__: cls for cls in (Inner, Outer, Net)}


@pytest.mark.parametrize(
    "config",
    [
        Outer(),
        Outer(inner=Inner(widths=()), by_group={"a": Inner(rate=2.0)}, limit=1e-8, on=True),
        Net(width=8, inner=Net(width=2)),
        {"x": [1, None, "text"], "type of thing": 1},
    ],
)
def test_what_is_written_as_json_is_read_back_equal(config):
    again = from_dict(json.loads(json.dumps(to_dict(config))), _KNOWN)
    assert to_dict(again) == to_dict(config)
    if not isinstance(config, dict):
        assert again == config


def test_a_linen_module_shows_only_its_own_fields():
    assert to_dict(Net()) == {"type": "Net", "width": 4, "dtype": "float32", "inner": None}


def test_a_value_that_json_can_not_hold_is_refused():
    with pytest.raises(UserError, match="JSON has no form"):
        to_dict(Inner(name=object()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "Iner"}, "did you mean 'Inner'"),
        ({"type": "Inner", "rat": 1.0}, "did you mean 'rate'"),
        (
            {"type": "Outer", "inner": {"type": "Inner", "x": 1}},
            r"config\.inner: Inner has no field 'x'",
        ),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_known_one(data, message):
    with pytest.raises(UserError, match=message):
        from_dict(data, _KNOWN)


@pytest.mark.parametrize(
    ("assignment", "changed"),
    [
        ("steps=5", Outer(steps=5)),
        ("--steps=5", Outer(steps=5)),
        ("inner.rate=1", Outer(inner=Inner(rate=1.0))),
        ("inner.rate=1e-3", Outer(inner=Inner(rate=1e-3))),
        ("inner.name=adamw", Outer(inner=Inner(name="adamw"))),
        ("inner.name=12", Outer(inner=Inner(name="12"))),
        ("inner.widths=[3,4]", Outer(inner=Inner(widths=(3, 4)))),
        ("limit=2", Outer(limit=2.0)),
        ("limit=none", Outer()),
        ("on=true", Outer(on=True)),
    ],
)
def test_an_override_changes_one_field_with_the_type_it_has(assignment, changed):
    assert override(Outer(), [assignment]) == changed


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "has no '='"),
        ("=3", "has no field before its '='"),
        ("inner=None", "is not an Inner; give fields of it by name"),
        ("stepps=3", "did you mean 'steps'"),
        ("inner.rate.x=3", "has no fields"),
        ("inner.rate=fast", r"inner\.rate='fast' is not a number"),
        ("steps=2.5", "steps='2.5' is not a whole number"),
        ("on=2", "on=2 is not true or false"),
        ("inner.widths=3", "inner.widths='3'"),
    ],
)
def test_a_bad_override_is_refused(assignment, message):
    with pytest.raises(UserError, match=message):
        override(Outer(), [assignment])


@dataclasses.dataclass(frozen=True)
class _Span:
    low: int = 0
    high: int = 4

    def __post_init__(self):
        if self.low >= self.high:
            raise UserError(f"low={self.low} is not below high={self.high}; lower it.")


def test_a_misspelt_place_is_taken_for_the_nearest_of_the_places_that_have_the_field():
    config = Outer(by_group={name: Inner() for name in ("network", "tokenizer")})
    for wrong in ("tokeniser", "tokenzer"):
        with pytest.raises(UserError, match=r"did you mean 'by_group\.tokenizer\.rate'"):
            override(config, [f"by_group.{wrong}.rate=1"])


@pytest.mark.parametrize("order", [1, -1])
def test_overrides_of_one_object_are_checked_together_in_any_order(order):
    assert override(_Span(), ["low=6", "high=8"][::order]) == _Span(6, 8)
    with pytest.raises(UserError, match="low=6 is not below high=4"):
        override(_Span(), ["low=6"])


def test_of_two_overrides_of_a_field_the_later_counts():
    assert override(Outer(), ["steps=5", "steps=6"]).steps == 6


@pytest.mark.parametrize("order", [1, -1])
def test_an_override_inside_of_another_is_refused(order):
    with pytest.raises(UserError, match="overlaps with another override"):
        override(Outer(), ["inner=none", "inner.rate=0.2"][::order])


def test_differences_name_the_path_and_both_values():
    old, new = (
        to_dict(Outer()),
        to_dict(Outer(inner=Inner(rate=0.2), by_group={"a": Inner()}, steps=4)),
    )
    lines = differences(old, new)
    assert {"inner.rate: 0.1 -> 0.2", "steps: 3 -> 4"} < set(lines) and len(lines) == 3
    assert any("by_group.a" in line for line in lines)
    assert not differences({"x": (1, 2)}, {"x": [1, 2]})  # JSON turns tuples into lists


def test_one_of_tells_the_nearest_or_all():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        one_of("schedule", "cosin", ["cosine", "linear"])
    with pytest.raises(UserError, match="known: cosine, linear"):
        one_of("schedule", "zzz", ["cosine", "linear"])


@dataclasses.dataclass(frozen=True)
class Outing:
    by: str = "foot"
    horses: int = 0
    days: tuple[Inner, ...] = ()

    @property
    def idle_fields(self):
        found = {} if self.by == "coach" else {"horses": f"by={self.by!r}"}
        return {**found, "days.0.name": "the first day, which has none"} if self.days else found


def test_what_was_set_and_has_no_effect_is_told_wherever_it_stands():
    trip = Outing(horses=2, days=(Inner(name="rest"), Inner(name="walk")))
    assert list(idle({"a": trip, "b": Outing("coach", 4), "c": Outing()})) == [
        "a.horses=2 has no effect with by='foot'.",
        "a.days.0.name='rest' has no effect with the first day, which has none.",
    ]
    assert list(idle(Outing(horses=3))) == ["horses=3 has no effect with by='foot'."]
    assert next(idle({"a": trip}, "trips")).startswith("trips.a.horses=2 ")
    assert not list(idle({"a": trip}, without=("a",)))
