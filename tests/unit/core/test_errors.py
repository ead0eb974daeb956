from fedretrain.core.errors import ConfigError, UserError


def test_an_error_is_one_line_that_says_what_where_and_how():
    error = ConfigError("the budget is\nspent", where="privacy.epsilon", fix="raise it")
    assert str(error) == "the budget is spent [privacy.epsilon] - raise it"
    assert isinstance(error, UserError)
