"""Going through large arrays part by part, so that an array that lives in a file is never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medunet.system.scratch import Scratch, lives_in_file, release

BLOCK = 8 * 2**20
"""Bytes of one part."""

RUN = 2**20
"""Bytes in a row that are worth fetching from a file: Linux takes it into memory in pieces of 4 KiB to 2 MiB."""

WINDOW = 2 * BLOCK
"""Bytes of a file within which scattered elements are fetched before memory is released."""

Empty = Callable[..., NDArray[Any]]
"""Makes an uninitialised array of a shape, a type and an order: `np.empty`, or a `Scratch`."""


def blocks(array: NDArray[Any], whole: int = 0) -> Iterator[NDArray[Any]]:
    """Views of consecutive parts of an array, of about `BLOCK` bytes each; memory is released after each.

    Args:
        array: of at least one element.
        whole: this number of last axes is never cut, however large they are.

    Yields:
        Parts in C order; all have the last axes of the array, but not always its first ones.
    """
    if array.ndim <= whole:
        yield array
        release(array)
    elif array.ndim > whole + 1 and array[0].nbytes > BLOCK:
        for part in array:
            yield from blocks(part, whole)
    else:
        for rows in spans(len(array), array.nbytes // len(array), BLOCK):
            yield array[rows]
            release(array)


def spans(length: int, size: int, most: int) -> Iterator[slice]:
    """Consecutive parts of an axis: at least one row, and no more than `most` holds of rows of this size."""
    step = max(1, most // max(1, size))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def ordered_blocks(array: NDArray[Any], folder: Path, dtype: DTypeLike | None = None) -> Iterator[NDArray[Any]]:
    """All elements of an array in C order, in contiguous blocks, to be written to a file.

    Args:
        folder: has room for a temporary copy, which is needed where memory runs across the order wanted.
        dtype: of the blocks; by default the array's.

    Raises:
        OutputError: no room for that copy.
    """
    for block in blocks(gathered(array, folder)):
        yield np.ascontiguousarray(block, dtype)


def gathered(array: NDArray[Any], folder: Path) -> NDArray[Any]:
    """An array of the same elements that `blocks` can go through: the array itself, unless each of its blocks is
    scattered over a whole file, which would then be read once per block; of such an array, a copy in C order.
    """
    if not lives_in_file(array) or not _scattered(array):
        return array
    copy = Scratch(folder)(array.shape, array.dtype)
    copy_in_tiles(copy, array)
    return copy


def copy_in_tiles(target: NDArray[Any], source: NDArray[Any]) -> None:
    """``target[...] = source`` by parts that are small in memory, whatever the order of either."""
    tile = _tile(target, source)
    starts = [range(0, n, step) for n, step in zip(target.shape, tile, strict=True)]
    for corner in np.ndindex(*(len(s) for s in starts)):
        part = tuple(slice(s[i], s[i] + step) for s, i, step in zip(starts, corner, tile, strict=True))
        held = np.empty_like(source[part])
        for near in _windows(source[part]):
            held[near] = source[part][near]
            release(source)
        for near in _windows(target[part]):
            target[part][near] = held[near]
            release(target)


def as_stored(array: NDArray[Any]) -> NDArray[Any]:
    """A view whose axes are in the order of memory, slowest first: for what does not depend on the order of voxels."""
    strides = _strides(array)
    return array.transpose(sorted(range(array.ndim), key=lambda axis: -strides[axis]))


def slowest_axis(array: NDArray[Any]) -> int:
    """The spatial axis of `(channel, *spatial)` whose neighbours are farthest apart in memory."""
    return int(np.argmax(_strides(array)[1:]))


def _scattered(array: NDArray[Any]) -> bool:
    """True where blocks consist of short runs, far apart in memory."""
    array = array.squeeze()
    if array.ndim < 2:
        return False
    along, *others = _strides(array)
    rows = max(1, BLOCK // max(1, array.nbytes // len(array)))
    if max(others) > along and rows * along < RUN:
        return True
    return array[0].nbytes > BLOCK and _scattered(array[0])


def _strides(array: NDArray[Any]) -> list[int]:
    """Distances in memory from one element to the next; 0 along axes of length 1, which lead nowhere."""
    return [abs(stride) if n > 1 else 0 for stride, n in zip(array.strides, array.shape, strict=True)]


def _tile(target: NDArray[Any], source: NDArray[Any]) -> tuple[int, ...]:
    """Lengths of a part of `BLOCK` bytes that in both arrays is made of long runs.

    Cut are the slow axes, slowest first; the axes along which memory runs, of either array, only if all else is cut.
    """
    strides = _strides(target)
    running = {_fastest(target), _fastest(source)}
    slow_first = sorted(set(range(target.ndim)) - running, key=lambda axis: -strides[axis])
    most = max(1, BLOCK // max(target.itemsize, source.itemsize))
    tile = list(target.shape)
    for axis in slow_first:
        tile[axis] = min(tile[axis], max(1, most * tile[axis] // math.prod(tile)))
    if math.prod(tile) > most:
        for axis in running:
            tile[axis] = min(tile[axis], int(most ** (1 / len(running))))
    return tuple(tile)


def _windows(array: NDArray[Any]) -> Iterator[tuple[slice, ...]]:
    """Indices of parts that together are the array, each within `WINDOW` bytes of a file; all of it if in none."""
    everything = [slice(None)] * array.ndim
    strides = _strides(array)
    axis = int(np.argmax(strides))
    step = max(1, WINDOW // max(1, strides[axis]))
    if step >= array.shape[axis] or not lives_in_file(array):
        yield tuple(everything)
        return
    for start in range(0, array.shape[axis], step):
        cut = everything.copy()
        cut[axis] = slice(start, start + step)
        for index in _windows(array[tuple(cut)]) if step == 1 else [tuple(everything)]:
            yield *index[:axis], cut[axis], *index[axis + 1 :]


def _fastest(array: NDArray[Any]) -> int:
    """The axis along which elements are neighbours in memory."""
    strides = _strides(array)
    return min(range(array.ndim), key=lambda axis: strides[axis] or math.inf)
