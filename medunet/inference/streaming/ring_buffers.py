"""Ring buffers for the few rows of a map that are still needed, allocated once for a whole scan."""

from __future__ import annotations

from collections.abc import Iterator

import torch


class RowWindow:
    """The rows that a convolution still needs, always contiguous, with zeros before the first and behind the last.

    Args:
        storage: ``(1, channel, capacity, *plane)``, with neighbouring rows side by side in memory.
        length: rows of the complete map.
        border: rows of zeros at each end.
    """

    def __init__(self, storage: torch.Tensor, length: int, border: int = 0) -> None:
        self._rows, self._length, self.border = storage, length, border
        self._origin = self._first = -border
        self._stop = 0
        self._rows[:, :, :border].zero_()

    def release(self, first: int) -> None:
        """Forget all rows before `first`."""
        self._first = max(self._first, first)

    def append(self, count: int) -> torch.Tensor:
        """A view ``(1, channel, count, *plane)`` that the caller fills with the next rows of the map."""
        completes = self._stop + count == self._length
        wanted = self._stop + count + (self.border if completes else 0)
        if wanted - self._origin > self._rows.shape[2]:
            self._shift()
        new = self.read(self._stop, self._stop + count)
        self._stop += count
        if completes:
            self.read(self._stop, wanted).zero_()
        return new

    def read(self, start: int, stop: int) -> torch.Tensor:
        """A view of some rows; those from ``-border`` to ``length + border`` exist."""
        assert self._first <= start <= stop <= self._origin + self._rows.shape[2], "the row was forgotten or not made"
        return self._rows.narrow(2, start - self._origin, stop - start)

    def _shift(self) -> None:
        """Move the rows that are still needed to the front."""
        distance, kept = self._first - self._origin, max(self._stop - self._first, 0)
        source = self._rows.narrow(2, distance, kept)
        self._rows.narrow(2, 0, kept).copy_(source.clone() if kept > distance else source)
        self._origin = self._first


class RowQueue:
    """The rows of a skip connection between their making and their use: a ring, as they wait long.

    Args:
        storage: ``(1, channel, capacity, *plane)``. Where rows are read in groups that start at multiples of a number,
            and the capacity is a multiple of it, no piece cuts a group.
    """

    def __init__(self, storage: torch.Tensor) -> None:
        self._rows = storage

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """One or two views ``(1, channel, count, *plane)`` of rows in order, each with its offset from `start`."""
        capacity, row = self._rows.shape[2], start
        assert stop - start <= capacity, "more rows than the ring holds"
        while row < stop:
            place = row % capacity
            count = min(stop - row, capacity - place)
            yield row - start, self._rows.narrow(2, place, count)
            row += count
