"""Ctrl-C and SIGTERM ask a training to stop after the step under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopSignal:
    """The number of the signal that arrived, 0 while none has."""

    received: int = 0


@contextmanager
def caught_signals(patient: bool = False) -> Iterator[StopSignal]:
    """Note the first SIGINT or SIGTERM instead of dying from it; a second one interrupts at once.

    Args:
        patient: a second one does nothing; a launcher such as torchrun repeats what the terminal has sent already.

    Outside the main thread signals cannot be caught, and none are.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.received:
            if patient:
                return
            raise KeyboardInterrupt
        stop.received = number

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
