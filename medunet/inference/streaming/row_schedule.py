"""Row schedule: the rows of every map of a U-Net that exist and are still needed while a scan comes in.

Integers only, along the one axis that is streamed. A row is a position on that axis with all of the other axes. The
maps of a level are numbered from 0, its input, by the convolutions behind them; map 0 of a decoder level is the skip
connection and the enlarged coarser map side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from medunet.geometry.shapes import UNetShape

Maps = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Rows:
    """A number of rows for each map.

    Attributes:
        encoder: per level, per map.
        decoder: per level (without the deepest), per map.
    """

    encoder: Maps
    decoder: Maps

    @property
    def output(self) -> int:
        """Rows of the finest decoder level's last map."""
        return self.decoder[0][-1]


@dataclass(frozen=True)
class AxisSchedule:
    """The rows of a U-Net's maps along one axis.

    In a padded network a convolution of kernel k sees k//2 rows of zeros before the first and behind the last row of
    its input, so n rows give n + k//2 - (k-1) of them; downsampling gives one row for each whole stride, upsampling a
    stride for each row. A complete map counts on as if the scan did not end: what is behind its last row arrives as
    slowly as the rows before, so that the last slab does not set free all rows that were waiting.

    Attributes:
        shape: the network's size arithmetic.
        axis: the streamed one.
        length: of the network's input along it; legal.
        wanted: rows of the output that are asked for, at most all.
    """

    shape: UNetShape
    axis: int
    length: int
    wanted: int

    def kernel(self, level: int) -> int:
        return self.shape.kernels[level][self.axis]

    def stride(self, level: int) -> int:
        """Rows of `level` for one row of the next deeper level."""
        return self.shape.strides[level][self.axis]

    def border(self, level: int) -> int:
        """Rows of zeros that a convolution of this level sees at each end."""
        return self.kernel(level) // 2 if self.shape.padded else 0

    def crop(self, level: int) -> int:
        """Rows of a skip connection before the first that is used."""
        return (self.lengths.encoder[level][-1] - self.lengths.decoder[level][0]) // 2

    @cached_property
    def lengths(self) -> Rows:
        """The rows of the complete maps."""
        return self._walk(self.length, [2 * self.border(level) for level in range(self.shape.levels)])

    def known(self, fed: int) -> Rows:
        """The rows that are there after `fed` rows of the network's input, more than its length to empty the queues."""
        walked = self._walk(fed, [self.border(level) for level in range(self.shape.levels)])
        return Rows(_at_most(walked.encoder, self.lengths.encoder), _at_most(walked.decoder, self.lengths.decoder))

    def _walk(self, rows: int, borders: Sequence[int]) -> Rows:
        """From the first map to the last, with `borders[level]` rows of zeros more for each convolution."""

        def block(level: int, rows: int, convolutions: int) -> tuple[int, ...]:
            gain = borders[level] - self.kernel(level) + 1
            maps = [rows]
            for _ in range(convolutions):
                maps.append(max(0, maps[-1] + gain))
            return tuple(maps)

        encoder: list[tuple[int, ...]] = []
        for level, count in enumerate(self.shape.encoder_convolutions):
            encoder.append(block(level, encoder[-1][-1] // self.stride(level - 1) if encoder else rows, count))
        decoder: list[tuple[int, ...]] = []
        for level in reversed(range(self.shape.levels - 1)):
            coarser = decoder[-1][-1] if decoder else encoder[-1][-1]
            decoder.append(block(level, coarser * self.stride(level), self.shape.decoder_convolutions[level]))
        return Rows(tuple(encoder), tuple(reversed(decoder)))

    def needed(self, known: Rows) -> Rows:
        """The first row of each map that somebody has yet to read; rows before it can be forgotten.

        May be negative, for the zeros before the first row. A map that is handed on at once (the deepest level's last,
        and each decoder level's last) is needed from its end.
        """
        encoder = []
        for level, maps in enumerate(known.encoder):
            last = maps[-1]
            if level < self.shape.levels - 1:
                last = min(known.encoder[level + 1][0] * self.stride(level), known.decoder[level][0] + self.crop(level))
            encoder.append((*self._block_needed(level, maps, self.lengths.encoder[level]), last))
        decoder = [
            (*self._block_needed(level, maps, self.lengths.decoder[level]), maps[-1])
            for level, maps in enumerate(known.decoder)
        ]
        return Rows(tuple(encoder), tuple(decoder))

    def _block_needed(self, level: int, maps: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[int, ...]:
        """For all maps of a level but the last; every block counts as residual, at the cost of a few rows."""
        first, *others = [after - self.border(level) for after in maps[1:]]
        shortcut = maps[-1] + (lengths[0] - lengths[-1]) // 2
        return (min(first, shortcut), *others)

    def steps(self, slab: int) -> list[Rows]:
        """Known rows before the first slab, and after each slab until the output has all rows that are wanted."""
        fed, steps = 0, [self.known(0)]
        while steps[-1].output < self.wanted:
            fed += slab
            steps.append(self.known(fed))
        return steps

    def held(self, slab: int) -> Rows:
        """The most rows of each map, zeros at its ends included, that are held at one time with slabs of this size.

        Zeros before the first row count from the start. The last map of a level, a ring, has whole groups of the rows
        that are downsampled together.
        """
        most = self._most(slab, self.needed)
        groups = [self.stride(level) for level in range(self.shape.levels - 1)] + [1]
        encoder = tuple(
            (*(n + self.border(level) for n in maps[:-1]), -(-maps[-1] // groups[level]) * groups[level])
            for level, maps in enumerate(most.encoder)
        )
        decoder = tuple(
            (*(n + self.border(level) for n in maps[:-1]), maps[-1]) for level, maps in enumerate(most.decoder)
        )
        return Rows(encoder, decoder)

    def made(self, slab: int) -> Rows:
        """The most rows of each map that one slab of this size adds."""
        return self._most(slab, lambda known: known)

    def _most(self, slab: int, first: Callable[[Rows], Rows]) -> Rows:
        """The most rows of each map from `first` of what is known before a slab to what is known after it."""
        steps = self.steps(slab)
        ranges = [(first(before), after) for before, after in pairwise(steps)]
        encoder = _largest([_differences(a.encoder, b.encoder) for a, b in ranges])
        return Rows(encoder, _largest([_differences(a.decoder, b.decoder) for a, b in ranges]))


def _differences(first: Maps, stop: Maps) -> Maps:
    return tuple(tuple(b - a for a, b in zip(*maps, strict=True)) for maps in zip(first, stop, strict=True))


def _largest(maps: Sequence[Maps]) -> Maps:
    return tuple(tuple(map(max, zip(*level, strict=True))) for level in zip(*maps, strict=True))


def _at_most(counts: Maps, limits: Maps) -> Maps:
    return tuple(tuple(map(min, maps, ends)) for maps, ends in zip(counts, limits, strict=True))
