"""Names of populations and devices: never a path, never an option."""

import pytest

from fedretrain.core.ids import is_name


@pytest.mark.parametrize("name", ["a", "0", "pump-17", "Pump_17.b", "p" * 64])
def test_a_name(name):
    assert is_name(name)


@pytest.mark.parametrize(
    "value", ["", "-a", ".a", "_a", "a/b", "a b", "a\n", "\u00e4", "p" * 65, None, 7, b"a", ["a"]]
)
def test_not_a_name(value):
    assert not is_name(value)
