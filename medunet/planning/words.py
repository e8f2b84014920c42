"""How numbers are written in the reasons of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def times(numbers: Iterable[float]) -> str:
    """`40×56×40`."""
    return "×".join(f"{n:.4g}" for n in numbers)


def size(amount: float) -> str:
    """Bytes as `1.5 GiB` or `300 MiB`."""
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{max(amount, 0) / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """`0.35 s`, `52 s`, `12 min` or `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def share(part: float) -> str:
    """A share as a percentage with two digits, `0.25 %`."""
    percent = 100 * part
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"
