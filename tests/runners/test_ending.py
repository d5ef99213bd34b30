"""Signals that end an export, wherever they come."""

import os
import signal

import pytest

from llmdo.runners.ending import Ending


def tell(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_raises_at_once_and_where_it_is_held_at_the_end(number, error):
    ending = Ending()
    before = signal.getsignal(number)
    with ending.heeded(), pytest.raises(error):
        tell(number)
    done = []
    ending = Ending()
    with ending.heeded(), pytest.raises(error), ending.hold():
        with ending.hold():
            tell(number)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    assert signal.getsignal(number) is before


def test_what_nobody_passed_on_is_raised_again():
    ending = Ending()
    with ending.heeded():
        with pytest.raises(KeyboardInterrupt):
            tell(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            ending.check()
    Ending().check()


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Ending().heeded():
            tell(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_in_between_is_not_replaced():
    ending = Ending()
    with ending.heeded(), pytest.raises(ValueError, match="first"), ending.hold():
        tell(signal.SIGTERM)
        raise ValueError("first")
