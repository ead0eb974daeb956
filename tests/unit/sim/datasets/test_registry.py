"""Data sets by name or import path."""

import sys
import types

import pytest

from fedretrain.core.errors import ConfigError
from sim.datasets import registry


@pytest.mark.parametrize("name", sorted(registry.LOADERS))
def test_every_named_loader_is_there(name):
    assert callable(registry.loader(name))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wisdom", "did you mean wisdm"),
        ("mnist", "choose from watch"),
        ("no_such_module:load", "cannot be imported"),
        ("sim.datasets.watch:lod", "no function 'lod'"),
    ],
)
def test_unknown_names_are_one_line(name, says):
    with pytest.raises(ConfigError, match=says):
        registry.loader(name)


def test_unknown_options_and_other_returns_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="no option 'colour'"):
        registry.load("watch", colour=1)
    monkeypatch.setitem(sys.modules, "odd_data", types.SimpleNamespace(load=lambda data_dir: [data_dir]))
    with pytest.raises(ConfigError, match="gave back a list"):
        registry.load("odd_data:load")
