"""Signals are noted, not died from."""

from __future__ import annotations

import os
import signal

import pytest

from medunet.system.signals import caught_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_a_second_interrupts(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), caught_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.received == number
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
