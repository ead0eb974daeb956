from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError


class Kind(StrEnum):
    SGD = "sgd"
    ADAM = "adam"


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    kind: Kind = Kind.SGD

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError("must be positive", where="lr")
        if self.lr > 1 and self.kind is Kind.SGD:
            raise ConfigError("both cannot be", where="inner")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    options: dict[str, int] = field(default_factory=dict)
    on: bool = False


def test_it_builds_nested_dataclasses():
    built = build(
        Outer, {"inner": {"lr": 1, "kind": "adam"}, "names": ["a"], "weights": [1, 2.5], "options": {"x": 1}}
    )
    assert built == Outer(Inner(1.0, Kind.ADAM), ("a",), (1.0, 2.5), {"x": 1})
    assert build(Outer, plain(built)) == built


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        ({"inner": {"lrr": 1}}, "inner", "did you mean 'lr'"),
        ({"inner": {"kind": "adamm"}}, "inner.kind", "did you mean 'adam'"),
        ({"inner": {"lr": "fast"}}, "inner.lr", "a number was expected"),
        ({"inner": {"lr": -1}}, "inner.lr", "positive"),
        ({"inner": {"lr": 2.0}}, "inner", "both"),
        ({"inner": 3}, "inner", "a group of keys"),
        ({"names": "abc"}, "names", "a list was expected"),
        ({"on": 1}, "on", "type bool"),
        ({"options": {"x": "y"}}, "options.x", "type int"),
        ({"inner": {"lr": float("nan")}}, "inner.lr", "NaN"),
        ({"inner": {"lr": 10**400}}, "inner.lr", "digits"),
    ],
)
def test_each_mistake_is_one_line_with_its_key(values, where, words):
    with pytest.raises(ConfigError) as caught:
        build(Outer, values)
    assert caught.value.where == where
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Switched(StrEnum):
    OFF = "off"
    NEAR = "near"


@dataclass(frozen=True)
class Lamp:
    mode: Switched = Switched.NEAR


def test_off_means_off_though_yaml_reads_false():
    assert build(Lamp, {"mode": False}) == Lamp(Switched.OFF)
    with pytest.raises(ConfigError, match="'on' is not one of off, near"):
        build(Lamp, {"mode": True})


@dataclass(frozen=True)
class Needy:
    first: int
    second: int
    third: int = 3


def test_what_has_no_default_and_is_not_given_is_named():
    with pytest.raises(ConfigError) as caught:
        build(Needy, {"third": 1}, where="needs")
    assert str(caught.value) == "there is no first and no second [needs] - give it: it has no default"
    assert build(Needy, {"first": 1, "second": 2}) == Needy(1, 2)
