"""Ctrl-C and SIGTERM: held back through a few assignments, and both leave a checkpoint."""

from __future__ import annotations

import signal
import threading

import pytest

from sim.interrupts import held, terminate_is_ctrl_c


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_comes_during_the_block_takes_effect_after_it(number):
    before, done = signal.getsignal(number), []

    def assign():
        signal.raise_signal(number)
        done.append("first")
        signal.raise_signal(number)
        done.append("second")

    with pytest.raises(KeyboardInterrupt), held():
        assign()
    assert done == ["first", "second"]
    assert signal.getsignal(number) is before


def test_an_error_in_the_block_stays_what_it_is():
    before = signal.getsignal(signal.SIGINT)

    def fail():
        signal.raise_signal(signal.SIGINT)
        return 1 / 0

    with pytest.raises(ZeroDivisionError), held():
        fail()
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_comes_and_nothing_happens():
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with held(), terminate_is_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_polite_end_is_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminate_is_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_is_left_alone():
    seen = []

    def work():
        with held(), terminate_is_ctrl_c():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
