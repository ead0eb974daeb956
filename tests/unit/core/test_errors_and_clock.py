import pytest

from fedretrain.core.clock import VirtualClock
from fedretrain.core.errors import ConfigError, UserError


def test_an_error_is_one_line_that_says_what_where_and_how():
    error = ConfigError("the budget is\nspent", where="privacy.epsilon", fix="raise it")
    assert str(error) == "the budget is spent [privacy.epsilon] - raise it"
    assert isinstance(error, UserError)


def test_a_virtual_clock_moves_forward_only():
    clock = VirtualClock()
    clock.advance_to(5.0)
    assert clock.now() == 5.0
    with pytest.raises(ValueError, match="back"):
        clock.advance_to(4.0)
