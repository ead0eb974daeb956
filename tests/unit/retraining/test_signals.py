"""Signals and the language of conditions."""

from __future__ import annotations

import math

import pytest

from fedretrain.core.build import build
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.retraining.signals import SIGNAL_TYPES, Condition, DriftScope, Op, Signals, SignalType


def test_every_signal_has_the_type_that_it_declares():
    assert SIGNAL_TYPES["psi_max"] is SignalType.NUMBER
    assert SIGNAL_TYPES["num_labels"] is SignalType.NUMBER
    assert SIGNAL_TYPES["filter_allows"] is SignalType.TRUTH
    assert SIGNAL_TYPES["drift_scope"] is SignalType.WORD
    for name, value in vars(Signals()).items():
        kind = {bool: SignalType.TRUTH, DriftScope: SignalType.WORD}.get(type(value), SignalType.NUMBER)
        assert value is None or SIGNAL_TYPES[name] is kind


@pytest.mark.parametrize(
    ("op", "value", "holds"),
    [
        ("<", 0.3, True),
        ("<", 0.2, False),
        ("<=", 0.2, True),
        ("==", 0.2, True),
        ("!=", 0.2, False),
        (">=", 0.2, True),
        (">", 0.2, False),
        (">", 0.1, True),
    ],
)
def test_numbers_compare_as_written(op, value, holds):
    assert Condition("psi_max", Op(op), value).holds(Signals(psi_max=0.2)) is holds


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("unknown", [None, math.nan])
def test_an_unknown_signal_satisfies_no_condition(op, unknown):
    assert not Condition("psi_max", op, 0.2).holds(Signals(psi_max=unknown))


def test_truth_values_and_words_compare_by_equality():
    signals = Signals(drift_confirmed=True, drift_scope=DriftScope.CLUSTER)
    assert Condition("drift_confirmed", Op.IS, True).holds(signals)
    assert not Condition("drift_confirmed", Op.IS_NOT, True).holds(signals)
    assert Condition("drift_scope", Op.IS, "cluster").holds(signals)
    assert Condition("drift_scope", Op.IS_NOT, "device").holds(signals)


def test_a_condition_is_built_from_a_file_by_sign_or_by_name():
    by_sign = build(Condition, {"signal": "psi_max", "op": ">=", "value": 1})
    assert by_sign == build(Condition, {"signal": "psi_max", "op": "at_least", "value": 1.0})
    assert str(by_sign) == "psi_max >= 1.0"
    truth = build(Condition, {"signal": "kpi_breached", "op": "is", "value": True})
    assert truth.value is True
    assert str(truth) == "kpi_breached == true"


def test_an_unknown_signal_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no signal 'psi_maximum' \[signal\] - did you mean 'psi_max'"):
        Condition("psi_maximum", Op.ABOVE, 0.2)


@pytest.mark.parametrize(
    ("signal", "value", "message"),
    [
        ("psi_max", True, "psi_max is a number, True is true or false"),
        ("psi_max", "high", "psi_max is a number, 'high' is a word"),
        ("drift_confirmed", 1.0, "drift_confirmed is true or false, 1.0 is a number"),
        ("drift_scope", 2.0, "drift_scope is a word"),
        ("drift_scope", "everywhere", "is not one of none, device, cluster, fleet"),
        ("psi_max", math.inf, "not a finite number"),
    ],
)
def test_a_value_of_another_type_is_refused(signal, value, message):
    with pytest.raises(ConfigError, match=message):
        Condition(signal, Op.IS, value)


def test_a_type_mismatch_names_the_nearest_signal_of_the_given_type():
    with pytest.raises(ConfigError, match="nearest signal that is a number is 'kpi_regression'"):
        Condition("kpi_breached", Op.IS, 1.0)


@pytest.mark.parametrize("op", [Op.BELOW, Op.AT_MOST, Op.AT_LEAST, Op.ABOVE])
@pytest.mark.parametrize(("signal", "value"), [("drift_confirmed", True), ("drift_scope", "fleet")])
def test_only_numbers_are_ordered(op, signal, value):
    with pytest.raises(ConfigError, match="does not order"):
        Condition(signal, op, value)


@pytest.mark.parametrize(
    "bad",
    [
        {"num_labels": -1},
        {"num_pool_rows": -5},
        {"campaign_epsilon": -0.1},
        {"campaign_epsilon": math.nan},
        {"wanted_within_s": math.nan},
    ],
)
def test_impossible_signals_are_refused(bad):
    with pytest.raises(DataError):
        Signals(**bad)


def test_not_a_number_is_not_known():
    assert Signals(score_drop=math.nan) == Signals()
