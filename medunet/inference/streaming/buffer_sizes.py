"""Buffer sizes of streaming: rows, channels and plane of each map of a U-Net, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

from medunet.geometry.shapes import UNetShape
from medunet.inference.streaming.row_schedule import AxisSchedule, Rows


class UNetDescription(Protocol):
    """The facts of a U-Net that streaming needs: `medunet.networks.settings.UNetSettings`, which it must not import."""

    @property
    def shape(self) -> UNetShape: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def channels(self) -> tuple[int, ...]: ...
    @property
    def residual(self) -> bool: ...
    @property
    def attention(self) -> bool: ...
    @property
    def norm(self) -> str: ...
    @property
    def activation(self) -> str: ...
    @property
    def inexact_reason(self) -> str | None: ...
    def __hash__(self) -> int: ...
    def encoder_channels(self, level: int) -> tuple[int, ...]: ...
    def decoder_channels(self, level: int) -> tuple[int, ...]: ...
    def up_channels(self, level: int) -> tuple[int, int]: ...


@dataclass(frozen=True)
class HeldMap:
    """The part of a map that is held.

    Attributes:
        channels: of the map.
        plane: its size along the axes that are not streamed.
        held: rows held at most, borders included.
        made: rows that one slab adds at most.
        length: rows of the complete map.
        border: rows of zeros before the first and behind the last.
    """

    channels: int
    plane: tuple[int, ...]
    held: int
    made: int
    length: int
    border: int

    @property
    def row(self) -> int:
        """Numbers in one row."""
        return self.channels * math.prod(self.plane)


HeldMaps = tuple[tuple[HeldMap, ...], ...]


@dataclass(frozen=True)
class StreamLayout:
    """All maps of a network while a scan of one size streams along one axis.

    Attributes:
        settings: the network's.
        scan: its spatial shape.
        axis: the streamed one.
        slab: rows fed at a time.
    """

    settings: UNetDescription
    scan: tuple[int, ...]
    axis: int
    slab: int

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the network's input."""
        return self.settings.shape.smallest_for(self.scan)

    @cached_property
    def schedule(self) -> AxisSchedule:
        return AxisSchedule(self.settings.shape, self.axis, self.size[self.axis], self.scan[self.axis])

    @cached_property
    def encoder(self) -> HeldMaps:
        """Per level; the last map of each is the skip connection, that of the deepest level is not stored."""
        levels = range(self.settings.shape.levels)
        return tuple(self._maps(level, self.settings.encoder_channels(level), True) for level in levels)

    @cached_property
    def decoder(self) -> HeldMaps:
        """Per level; the last map of each is handed on at once and not stored."""
        levels = range(self.settings.shape.levels - 1)
        return tuple(self._maps(level, self.settings.decoder_channels(level), False) for level in levels)

    @property
    def stored(self) -> list[HeldMap]:
        """All maps that have a buffer."""
        last = len(self.encoder) - 1
        skips = [maps[-1] for level, maps in enumerate(self.encoder) if level < last]
        return [*(held for maps in (*self.encoder, *self.decoder) for held in maps[:-1]), *skips]

    @cached_property
    def _planes(self) -> list[AxisSchedule]:
        """The axes that are not streamed."""
        return [AxisSchedule(self.settings.shape, a, n, n) for a, n in enumerate(self.size) if a != self.axis]

    def _maps(self, level: int, channels: Sequence[int], encoding: bool) -> tuple[HeldMap, ...]:
        held, made, lengths = (_of(rows, level, encoding) for rows in (*self._rows, self.schedule.lengths))
        planes = zip(*(_of(schedule.lengths, level, encoding) for schedule in self._planes), strict=True)
        borders = (*(self.schedule.border(level),) * (len(channels) - 1), 0)
        return tuple(HeldMap(*numbers) for numbers in zip(channels, planes, held, made, lengths, borders, strict=True))

    @cached_property
    def _rows(self) -> tuple[Rows, Rows]:
        return _held_and_made(self.schedule, self.slab)


@lru_cache(maxsize=64)
def _held_and_made(schedule: AxisSchedule, slab: int) -> tuple[Rows, Rows]:
    """Kept, because a planner asks for many planes with the same rows."""
    return schedule.held(slab), schedule.made(slab)


def _of(rows: Rows, level: int, encoding: bool) -> tuple[int, ...]:
    return (rows.encoder if encoding else rows.decoder)[level]
