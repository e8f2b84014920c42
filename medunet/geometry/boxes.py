"""Boxes of voxels: values that shift, grow, intersect, become slices, and are read from arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Fill = Literal["constant", "reflect"]


@dataclass(frozen=True)
class Box:
    """A box of voxels, `start` included and `stop` excluded; it may lie outside any scan, and may be empty.

    Raises:
        ValueError: `start` and `stop` differ in length, or `stop` lies before `start`.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"a box needs one start and one stop per axis, found {self.start} and {self.stop}")
        if any(stop < start for start, stop in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box cannot stop at {self.stop}, before its start {self.start}")

    @classmethod
    def of_shape(cls, shape: Sequence[int], start: Sequence[int] | None = None) -> Box:
        """The box of this shape that starts at `start`, by default at the origin."""
        first = tuple(start) if start is not None else (0,) * len(shape)
        return cls(first, tuple(s + n for s, n in zip(first, shape, strict=True)))

    @property
    def dimensions(self) -> int:
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Slices for an array that holds the box.

        Raises:
            ValueError: the box starts before 0, where a slice would count from the array's end.
        """
        if any(start < 0 for start in self.start):
            raise ValueError(f"the box {self.start} to {self.stop} starts outside the array; read it with read_box")
        return tuple(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))

    def shifted(self, offset: Sequence[int]) -> Box:
        """The same box `offset` voxels further along each axis."""
        return Box.of_shape(self.shape, [s + o for s, o in zip(self.start, offset, strict=True)])

    def along(self, axis: int, start: int, stop: int) -> Box:
        """The same box with another span along one axis."""
        return Box(
            (*self.start[:axis], start, *self.start[axis + 1 :]), (*self.stop[:axis], stop, *self.stop[axis + 1 :])
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        """The same box, counted from `origin`."""
        return self.shifted([-o for o in origin])

    def grown(self, margin: int | Sequence[int]) -> Box:
        """The box with `margin` voxels more on both sides of each axis; a negative margin shrinks it."""
        margins = (margin,) * self.dimensions if isinstance(margin, int) else tuple(margin)
        return Box(
            tuple(s - m for s, m in zip(self.start, margins, strict=True)),
            tuple(s + m for s, m in zip(self.stop, margins, strict=True)),
        )

    def mirrored(self, shape: Sequence[int], axes: Sequence[int]) -> Box:
        """The same voxels, counted from the far end of an array of this spatial shape along some axes."""
        pairs = [
            (n - b, n - a) if axis in axes else (a, b)
            for axis, (a, b, n) in enumerate(zip(self.start, self.stop, shape, strict=True))
        ]
        return Box(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))

    def intersection(self, other: Box) -> Box:
        """The voxels that both boxes hold; an empty box if they do not meet."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def contains(self, other: Box) -> bool:
        """True if each voxel of `other` lies in this box; an empty box lies in every box."""
        return other.voxels == 0 or self.intersection(other) == other


def mirrored_indices(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Map positions ``start .. stop-1`` of an axis onto ``0 .. length-1`` by mirrors at its two ends.

    The end voxels are not repeated, and the mirrors repeat as often as needed: for ``length`` 3, positions
    ``-3 .. 5`` give 1 2 1 0 1 2 1 0 1. An axis of one voxel repeats it.

    Raises:
        ValueError: the axis has no voxel to mirror.
    """
    if length < 1:
        raise ValueError(f"an axis of length {length} has nothing to mirror")
    period = max(2 * (length - 1), 1)
    position = np.arange(start, stop) % period
    return np.minimum(position, period - position) if length > 1 else np.zeros_like(position)


def grown_slices(slices: Sequence[slice], margin: int | Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The slices of a part of an array, with `margin` more on both sides of each axis as far as the array reaches."""
    box = Box(tuple(s.start for s in slices), tuple(s.stop for s in slices))
    return box.grown(margin).intersection(Box.of_shape(shape)).slices


def read_box(array: NDArray[Any], box: Box, mode: Fill = "constant", value: float = 0) -> NDArray[Any]:
    """Copy a box out of an array, inventing what lies outside.

    Only the voxels needed are touched, so `array` may be a memory map of a large file.

    Args:
        array: ``(channel, *spatial)``.
        box: in voxels of the spatial axes; may lie partly or wholly outside the array.
        mode: ``constant`` fills the outside with `value`; ``reflect`` mirrors the array at its ends without repeating
            the end voxels, as often as needed.
        value: the constant, in the array's dtype.

    Returns:
        ``(channel, *box.shape)``, the array's dtype, contiguous, never a view of `array`.

    Raises:
        ValueError: box and array differ in dimensions, or an empty axis was to be mirrored.
    """
    if array.ndim != box.dimensions + 1:
        raise ValueError(f"a box of {box.dimensions} dimensions does not fit an array of shape {array.shape}")
    return _read_mirrored(array, box) if mode == "reflect" else _read_constant(array, box, value)


def _read_constant(array: NDArray[Any], box: Box, value: float) -> NDArray[Any]:
    inside = box.intersection(Box.of_shape(array.shape[1:]))
    if inside == box:
        return np.array(array[(slice(None), *box.slices)], order="C")
    result = np.full((array.shape[0], *box.shape), value, dtype=array.dtype)
    if inside.voxels:
        result[(slice(None), *inside.relative_to(box.start).slices)] = array[(slice(None), *inside.slices)]
    return result


def _read_mirrored(array: NDArray[Any], box: Box) -> NDArray[Any]:
    if box.voxels == 0:
        return np.empty((array.shape[0], *box.shape), dtype=array.dtype)
    indices = [mirrored_indices(a, b, n) for a, b, n in zip(box.start, box.stop, array.shape[1:], strict=True)]
    needed = Box(tuple(int(i.min()) for i in indices), tuple(int(i.max()) + 1 for i in indices))
    result = array[(slice(None), *needed.slices)]
    for axis, (index, first, count) in enumerate(zip(indices, needed.start, needed.shape, strict=True), start=1):
        if not np.array_equal(index - first, np.arange(count)):
            result = np.take(result, index - first, axis=axis)
    return np.array(result, order="C", copy=True)
