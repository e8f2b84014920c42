"""Boxes: arithmetic against sets of voxels, reading against numpy's own padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.geometry.boxes import Box, grown_slices, mirrored_indices, read_box

starts = st.tuples(st.integers(-6, 6), st.integers(-6, 6))
shapes = st.tuples(st.integers(0, 6), st.integers(0, 6))
boxes = st.builds(lambda start, shape: Box.of_shape(shape, start), starts, shapes)


def voxels(box: Box) -> set[tuple[int, int]]:
    """Every position in a 2-D box, the slow way."""
    return {(i, j) for i in range(box.start[0], box.stop[0]) for j in range(box.start[1], box.stop[1])}


@pytest.mark.slow
@settings(deadline=None)
@given(boxes, boxes, starts, st.integers(0, 3))
def test_boxes_are_sets_of_voxels(a: Box, b: Box, offset: tuple[int, int], margin: int) -> None:
    assert a.voxels == len(voxels(a))
    assert voxels(a.intersection(b)) == voxels(a) & voxels(b)
    assert a.contains(b) == (voxels(b) <= voxels(a))
    assert voxels(a.shifted(offset)) == {(i + offset[0], j + offset[1]) for i, j in voxels(a)}
    assert a.shifted(offset).relative_to(offset) == a
    assert a.grown(margin).grown(-margin) == a
    assert a.grown((margin, 0)).shape == (a.shape[0] + 2 * margin, a.shape[1])
    assert voxels(a.along(1, 3, 5)) == {(i, j) for i in range(a.start[0], a.stop[0]) for j in (3, 4)}


@pytest.mark.slow
@given(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.integers(0, 4))
def test_grown_slices_end_where_the_array_does(start: tuple[int, int], margin: int) -> None:
    shape, length = (7, 9), 2
    part = np.zeros(shape, bool)
    part[tuple(slice(s, s + length) for s in start)] = True
    near = np.zeros(shape, bool)
    near[grown_slices([slice(s, s + length) for s in start], margin, shape)] = True
    slowly = [[any(part[max(0, i - margin) : i + margin + 1, max(0, j - margin) : j + margin + 1].ravel())
               for j in range(shape[1])] for i in range(shape[0])]  # fmt: skip
    np.testing.assert_array_equal(near, slowly)


def test_impossible_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="before its start"):
        Box((3, 3), (4, 2))
    with pytest.raises(ValueError, match="one start and one stop"):
        Box((3,), (4, 5))
    with pytest.raises(ValueError, match="outside the array"):
        _ = Box((-1,), (4,)).slices


def test_mirrored_indices_by_hand() -> None:
    assert mirrored_indices(-3, 6, 3).tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]
    assert mirrored_indices(-2, 3, 1).tolist() == [0, 0, 0, 0, 0]
    assert mirrored_indices(-3, 4, 2).tolist() == [1, 0, 1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match="nothing to mirror"):
        mirrored_indices(0, 1, 0)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    starts.map(lambda s: (3 * s[0], 2 * s[1])),
    st.tuples(st.integers(0, 25), st.integers(0, 25)),
)
def test_reading_equals_numpy_padding(shape: tuple[int, ...], start: tuple[int, int], size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    box = Box.of_shape(size, start)
    wide = [(0, 0), (60, 60), (60, 60)]
    inner = (slice(None), *box.shifted((60, 60)).slices)
    assert np.array_equal(read_box(array, box, "reflect"), np.pad(array, wide, mode="reflect")[inner])
    padded = np.pad(array, wide, constant_values=-7)[inner]
    result = read_box(array, box, "constant", -7)
    assert np.array_equal(result, padded)
    assert result.dtype == array.dtype


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("box", [Box((0, 0), (4, 5)), Box((1, 1), (3, 3)), Box((-2, 0), (4, 9))])
def test_reading_copies(box: Box, mode: str) -> None:
    array = np.arange(20.0).reshape(1, 4, 5)
    result = read_box(array, box, mode)  # type: ignore[arg-type]
    result[:] = -1
    assert result.flags.c_contiguous
    assert np.array_equal(array, np.arange(20.0).reshape(1, 4, 5))


def test_dimensions_must_agree() -> None:
    with pytest.raises(ValueError, match="2 dimensions"):
        read_box(np.zeros((1, 4, 4, 4)), Box((0, 0), (2, 2)))


class Spy(np.ndarray):
    """An array that remembers how much of it was asked for."""

    asked: list[int]

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        found = np.asarray(super().__getitem__(key))
        self.asked.append(found.size)
        return found


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_a_memory_map_is_read_only_where_needed(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, np.random.default_rng(1).random((2, 40, 40, 40)))
    array = np.load(path, mmap_mode="r")
    spy = array.view(Spy)
    spy.asked = []
    box = Box((-2, 10, 36), (3, 14, 44))
    result = read_box(spy, box, mode)  # type: ignore[arg-type]
    assert np.array_equal(result, read_box(np.array(array), box, mode))  # type: ignore[arg-type]
    assert sum(spy.asked) <= 2 * 3 * 4 * 8
