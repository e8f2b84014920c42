"""Buffers for the few rows of a map that are still needed, allocated once for a whole scan."""

from __future__ import annotations

import torch


class RowBuffer:
    """The rows of a map between their making and their last reading.

    New rows always lie side by side. Where the end of the storage is reached, the rows that are still needed move to
    the front if they are few; otherwise new rows go on from the front, and only a reading across that break copies.

    Args:
        storage: ``(1, channel, capacity, *plane)``, with neighbouring rows side by side in memory.
        ring: whether new rows go on from the front; the capacity then exceeds what is held by less than one slab.
    """

    def __init__(self, storage: torch.Tensor, ring: bool) -> None:
        self._rows, self._ring = storage, ring
        self._first = self._stop = 0
        self._chunks = [(0, 0)]
        """The first row of each contiguous piece, and its place."""

    def release(self, first: int) -> None:
        """Forget all rows before `first`."""
        self._first = max(self._first, min(first, self._stop))
        while len(self._chunks) > 1 and self._chunks[1][0] <= self._first:
            self._chunks.pop(0)

    def append(self, count: int) -> torch.Tensor:
        """A view ``(1, channel, count, *plane)`` that the caller fills with the next rows of the map."""
        row, place = self._chunks[-1]
        end = place + self._stop - row
        if end + count > self._rows.shape[2]:
            if self._ring:
                self._chunks.append((self._stop, 0))
                self.release(self._first)
            else:
                self._shift()
            row, place = self._chunks[-1]
            end = place + self._stop - row
        self._stop += count
        return self._rows.narrow(2, end, count)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows that exist, ``(1, channel, stop - start, *plane)``: a view, or a copy across a break."""
        assert self._first <= start <= stop <= self._stop, "the row was forgotten or not made"
        pieces = []
        for number, (row, place) in enumerate(self._chunks):
            end = self._chunks[number + 1][0] if number + 1 < len(self._chunks) else self._stop
            low, high = max(start, row), min(stop, end)
            if low < high or (start == stop and row <= start <= end):
                pieces.append(self._rows.narrow(2, place + low - row, max(high - low, 0)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)

    def _shift(self) -> None:
        """Move the rows that are still needed to the front."""
        (row, place), kept = self._chunks[0], self._stop - self._first
        distance = place + self._first - row
        source = self._rows.narrow(2, distance, kept)
        self._rows.narrow(2, 0, kept).copy_(source.clone() if kept > distance else source)
        self._chunks = [(self._first, 0)]
