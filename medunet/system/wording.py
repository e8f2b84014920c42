"""Text for people: sizes, durations, shares and lists, always in the same form."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from medunet.errors import ConfigError


def times_text(numbers: Iterable[float]) -> str:
    """Lengths as `40×56×40`, fractions with four digits."""
    return "×".join(f"{n:.4g}" if isinstance(n, float) else str(n) for n in numbers)


def bytes_text(amount: float) -> str:
    """Bytes as `1.5 GiB` or `300 MiB`, the latter rounded up."""
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{math.ceil(max(amount, 0) / 2**20)} MiB"


def parse_bytes(size: int | str) -> int:
    """A number of bytes from a text such as `4G`, `500M` or `4GiB`; suffixes are powers of 1024.

    Raises:
        ConfigError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(size).strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"{size!r} is no size; write for example 4G or 500M")
    return int(float(match[1]) * 1024 ** "_KMGT".index(match[2].upper() or "_"))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and `…` for those that follow."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def share(part: float) -> str:
    """A share as a percentage with two digits, `0.25 %`."""
    percent = 100 * part
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def duration(seconds: float) -> str:
    """A length of time for people: `0.35 s`, `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.2g} s" if 0 < seconds < 10 else f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
