"""Measured memory: the C library fills the gaps of freed memory differently from run to run, by a tenth and more."""

from __future__ import annotations

import statistics
from collections.abc import Callable


def typical(measure: Callable[[], float], low: float, high: float) -> float:
    """What is measured, or the median of three where the first one is outside the bounds."""
    first = measure()
    return first if low < first < high else statistics.median([first, measure(), measure()])
