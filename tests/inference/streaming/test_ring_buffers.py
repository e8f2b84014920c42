"""The buffers against a plain list of all rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.inference.streaming.ring_buffers import RowQueue, RowWindow


def storage(rows: int) -> torch.Tensor:
    return torch.full((1, rows, 3, 2), float("nan")).movedim(-1, 1)


def numbered(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start + 1, stop + 1, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 2, -1, 3)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 3), st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_a_window_gives_back_what_was_written(border: int, kept: int, counts: list[int]) -> None:
    length = sum(counts)
    reference = torch.nn.functional.pad(numbered(0, length), (0, 0, border, border))
    window = RowWindow(storage(border + kept + max(counts) + border), length, border)
    stop = 0
    for count in counts:
        first = max(stop - kept, 0) - border
        window.release(first)
        window.append(count).copy_(numbered(stop, stop + count))
        stop += count
        end = stop + (border if stop == length else 0)
        assert torch.equal(window.read(first, end), reference[:, :, first + border : end + border])


def test_a_window_refuses_rows_that_are_gone() -> None:
    window = RowWindow(storage(4), 8)
    window.append(4).zero_()
    window.release(2)
    with pytest.raises(AssertionError, match="forgotten"):
        window.read(1, 3)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3), st.integers(0, 4), st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_a_queue_gives_back_what_was_written_in_whole_groups(group: int, waiting: int, counts: list[int]) -> None:
    queue = RowQueue(storage((max(counts) + waiting) * group))
    stop = 0
    for count in counts:
        new = stop + count * group
        for offset, piece in queue.pieces(stop, new):
            piece.copy_(numbered(stop + offset, stop + offset + piece.shape[2]))
        stop, first = new, max(new - (count + waiting) * group, 0)
        pieces = list(queue.pieces(first, stop))
        assert len(pieces) <= 2
        assert all(piece.shape[2] % group == 0 for _, piece in pieces)
        assert torch.equal(torch.cat([piece for _, piece in pieces], 2), numbered(first, stop))


def test_a_queue_refuses_more_than_it_holds() -> None:
    with pytest.raises(AssertionError, match="more rows"):
        list(RowQueue(storage(4)).pieces(0, 5))
