"""What objects hold goes to bytes and back: every kind, one object under two names, nothing left out, nothing run."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.numpy

from fedretrain.core.errors import DataError
from sim import snapshot
from sim.schema import RunnerKind
from sim.snapshot import dump, load


@dataclass(frozen=True)
class Fact:
    size: int
    parts: tuple[Any, ...] = ()

    @cached_property
    def doubled(self) -> int:
        return 2 * self.size


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class World:
    """Built anew from the configuration."""

    name: str = "built"


class Machine:
    """Changes as it runs."""

    def __init__(self, world: World) -> None:
        self.world, self.count = world, 0
        self.log: list[Any] = []
        self.ask = self.answer
        self.part = Part(self)

    def answer(self) -> int:
        return self.count


@dataclass
class Part:
    machine: Machine
    rows: dict[int, Any] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    monkeypatch.setattr(snapshot, "_OURS", ("fedretrain.", "sim.", "tests."))


def again(value):
    return load(dump(value), "here")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**70),
        0.1,
        math.inf,
        "text \u00e9",
        [1, [2.5, None]],
        (1, (2, "a")),
        {3, 1},
        frozenset({"a"}),
        {1: "a", "b": (2,), (3, 4): None},
        deque([1, 2]),
        Counter("aab"),
        RunnerKind.RAY,
        Fact(1, (Fact(2), Pair(1, "b"))),
    ],
    ids=repr,
)
def test_every_kind_comes_back(value):
    found = again(value)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_nan_and_numbers_keep_their_type():
    assert math.isnan(again([math.nan])[0])
    found = again([np.float32(0.1), np.int64(5), np.bool_(True)])
    assert [type(one) for one in found] == [np.float32, np.int64, np.bool_]
    assert found == [np.float32(0.1), 5, True]


@pytest.mark.parametrize("dtype", [np.bool_, np.int16, np.uint64, np.float32, np.float64])
def test_arrays_keep_their_bits_whatever_their_layout(dtype):
    rng = np.random.default_rng(0)
    value = (100 * rng.random((4, 6))).astype(dtype)
    for array in (value, value.T, value[::2, 1:3], value[:0], np.array(value[0, 0])):
        found = again(array)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert found.flags.writeable
    nothing = again(np.array([math.nan, -0.0]))
    assert np.signbit(nothing[1])


def test_one_object_under_two_names_stays_one():
    row, record = np.arange(3), Fact(7)
    found = again({"a": [row, record], "b": [row, record], "c": np.arange(3)})
    assert found["a"][0] is found["b"][0]
    assert found["a"][1] is found["b"][1]
    assert found["c"] is not found["a"][0]


def test_an_object_is_filled_and_what_was_built_stays_its_own():
    old, new = Machine(World("old")), Machine(World("new"))
    old.count, old.log = 3, [np.arange(2)]
    old.part.rows[5] = old.log[0]
    world, part = new.world, new.part
    kept = dump(old, kept=lambda one: isinstance(one, World))
    assert load(kept, "here", into=new) is new
    assert (new.count, new.world, new.part) == (3, world, part)
    assert new.part.machine is new
    assert new.part.rows[5] is new.log[0]
    assert new.ask() == 3, "its own function, not the old one's"
    assert new.world.name == "new"


def test_what_was_worked_out_is_worked_out_again():
    value = Fact(4)
    assert value.doubled == 8
    assert "doubled" not in vars(again(value))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Fact(1, (object(),)), r"Fact.parts\[0\] is a builtins.object"),
        ({"a": np.array(["x"])}, r"dict\['a'\] is an array of <U1"),
        ([np.random.default_rng(0)], r"list\[0\] is a numpy.random"),
        (b"bytes", "bytes is a builtins.bytes"),
    ],
)
def test_what_has_no_place_is_refused_by_its_path(value, named):
    with pytest.raises(TypeError, match=named):
        dump(value)


def rewritten(data, change):
    arrays = {k: v.tobytes() for k, v in safetensors.numpy.load(data).items()}
    tree = change(json.loads(arrays["tree"]))
    arrays["tree"] = json.dumps(tree).encode()
    arrays["digest"] = snapshot._digest(arrays["tree"], arrays["blob"])
    return safetensors.numpy.save({k: np.frombuffer(v, np.uint8) for k, v in arrays.items()})


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (["object", "os:system", {}], "no class os:system"),
        (["enum", "subprocess:Popen", "true"], "no class subprocess:Popen"),
        (["object", "sim.plan:compose", {}], "no class sim.plan:compose"),
        (["object", "sim.plan:Path", {}], "no class sim.plan:Path"),
        (["object", "sim.plan:PlannedArm", {"name": "a"}], "has other fields"),
        (["kept"], "nothing stands"),
        (["unheard of", 1], "unheard of"),
    ],
)
def test_nothing_but_records_of_ours_is_made(node, why):
    data = rewritten(dump([]), lambda _: node)
    with pytest.raises(DataError, match=why):
        load(data, "here")


def test_damage_is_refused():
    data = bytearray(dump([np.arange(100)]))
    data[-7] ^= 1
    for broken in (bytes(data), bytes(data[:50]), b"", b"x" * 100):
        with pytest.raises(DataError, match="damaged"):
            load(broken, "here")
