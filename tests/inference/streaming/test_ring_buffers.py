"""The buffers against a plain list of all rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.inference.streaming.ring_buffers import RowBuffer


def storage(rows: int) -> torch.Tensor:
    return torch.full((1, rows, 3, 2), float("nan")).movedim(-1, 1)


def numbered(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start + 1, stop + 1, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 2, -1, 3)


@settings(deadline=None, max_examples=200)
@given(st.booleans(), st.integers(0, 9), st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_a_buffer_gives_back_what_was_written(ring: bool, kept: int, counts: list[int]) -> None:
    buffer = RowBuffer(storage(kept + max(counts) + (max(counts) - 1 if ring else 0)), ring)
    stop = 0
    for count in counts:
        first = max(stop - kept, 0)
        buffer.release(first)
        buffer.append(count).copy_(numbered(stop, stop + count))
        stop += count
        assert torch.equal(buffer.read(first, stop), numbered(first, stop))
        assert buffer.read(stop, stop).shape[2] == 0


@pytest.mark.parametrize("ring", [True, False])
def test_a_buffer_refuses_rows_that_are_gone(ring: bool) -> None:
    buffer = RowBuffer(storage(4), ring)
    buffer.append(4).zero_()
    buffer.release(2)
    with pytest.raises(AssertionError, match="forgotten"):
        buffer.read(1, 3)


def test_only_a_reading_across_the_break_of_a_ring_copies() -> None:
    rows = storage(7)
    buffer = RowBuffer(rows, ring=True)
    for first in (0, 2, 4, 6):
        buffer.release(first - 2)
        buffer.append(2).copy_(numbered(first, first + 2))
    inside = rows.untyped_storage().data_ptr()
    assert buffer.read(6, 8).untyped_storage().data_ptr() == inside
    assert buffer.read(5, 7).untyped_storage().data_ptr() != inside
