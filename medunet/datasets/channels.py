"""Choosing channels by index or by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from medunet.errors import DataError

Channel: TypeAlias = int | str
"""An index, counted from 0 as in `CASE_0000`, or a name."""


def channel_indices(wanted: Sequence[Channel], names: Sequence[str], count: int, where: str) -> tuple[int, ...]:
    """The indices of the wanted channels among `count`; names are compared without regard to case.

    Args:
        names: of the channels; empty if nothing says them.
        where: the file or case, for messages.

    Raises:
        DataError: an index that is too large, or a name that no channel has, or several.
    """
    return tuple(_index(channel, names, count, where) for channel in wanted)


def _index(channel: Channel, names: Sequence[str], count: int, where: str) -> int:
    known = ", ".join(f"{number} {name!r}" for number, name in enumerate(names)) or "without names"
    if isinstance(channel, int):
        if channel < count:
            return channel
        raise DataError(f"{where}: has no channel {channel}: it has {count} ({known}), counted from 0")
    found = [number for number, name in enumerate(names) if name.casefold() == channel.casefold()]
    if len(found) != 1:
        raise DataError(
            f"{where}: {len(found) or 'no'} channel{'s are' if found else ' is'} called {channel!r}: it has {count} "
            f"({known})\nchoose by index, counted from 0, or name the channels in dataset.json"
        )
    return found[0]


def chosen_names(wanted: Sequence[Channel], declared: Sequence[str]) -> tuple[str, ...]:
    """The names of the wanted channels; empty if one of them is an index that no declaration names."""
    known = [channel if isinstance(channel, str) else "".join(declared[channel : channel + 1]) for channel in wanted]
    return tuple(known) if all(known) else ()
