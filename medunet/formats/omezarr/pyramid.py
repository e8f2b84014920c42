"""Zarr arrays chunk by chunk, and the lower resolutions that viewers open large images by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.formats.omezarr.ngff import Space
from medunet.system.blocks import BLOCK, copy_in_tiles

CHUNK = {2: 1024, 3: 128}
"""Length of a chunk along each axis: 2 MiB of labels in three dimensions, so that large scans are thousands of files
and not a million."""

SMALL = 512
"""Voxels along the longest axis up to which an image needs no lower resolution: a viewer shows it as it is."""

MOST_LEVELS = 8
BOX = BLOCK
"""Bytes that are decoded at a time; a single chunk may be more."""


def boxes(shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of whole chunks that together are an array, each of about `BOX` bytes or one chunk, in C order."""
    lengths = [min(chunk, n) for chunk, n in zip(chunks, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        chunk = min(chunks[axis], shape[axis])
        many = BOX // max(1, math.prod(lengths) * itemsize)
        lengths[axis] = min(shape[axis], chunk * max(1, many))
    starts = [range(0, n, step) for n, step in zip(shape, lengths, strict=True)]
    for corner in np.ndindex(*(len(s) for s in starts)):
        begins = [s[i] for s, i in zip(starts, corner, strict=True)]
        yield tuple(slice(a, min(a + step, n)) for a, step, n in zip(begins, lengths, shape, strict=True))


def reductions(shape: tuple[int, ...], space: Space) -> Iterator[tuple[int, ...]]:
    """The steps of each resolution: how many voxels of the image one of its voxels stands for, along each axis.

    The finest axes are halved first, until voxels are about cubes, as viewers and other writers have it.
    """
    lengths, steps = list(shape), [1] * len(shape)
    sizes = [float(space.affine[place, place]) for place in ("XYZ".index(axis) for axis in space.axes)]
    yield tuple(steps)
    for _ in range(MOST_LEVELS - 1):
        if max(lengths) <= SMALL:
            return
        finest = min(size for size, n in zip(sizes, lengths, strict=True) if n > 1)
        for axis, (size, n) in enumerate(zip(list(sizes), list(lengths), strict=True)):
            if n > 1 and size < 2 * finest:
                lengths[axis], sizes[axis], steps[axis] = math.ceil(n / 2), size * 2, steps[axis] * 2
        yield tuple(steps)


def write_levels(
    group: Any, array: NDArray[Any], dtype: np.dtype[Any], axes: str, levels: list[tuple[str, tuple[int, ...]]]
) -> None:
    """Write the full resolution from the array, each other one from the one above it; a box at a time is in memory.

    Args:
        group: of zarr; new.
        array: in the order of `axes`, in memory or in a file.
        levels: each one's path and its `reductions`.
    """
    lead = len(axes) - len(levels[0][1])
    above, before = None, levels[0][1]
    for name, steps in levels:
        factor = (1,) * lead + tuple(now // earlier for now, earlier in zip(steps, before, strict=True))
        whole = array.shape if above is None else above.shape
        shape = tuple(math.ceil(n / step) for n, step in zip(whole, factor, strict=True))
        level = _create(group, name, shape, dtype, axes)
        for box in boxes(shape, level.chunks, dtype.itemsize):
            held = np.empty(tuple(part.stop - part.start for part in box), dtype)
            if above is None:
                copy_in_tiles(held, array[box])
            else:
                _reduce(above, held, [part.start for part in box], factor)
            level[box] = held
        above, before = level, steps


def _reduce(above: Any, held: NDArray[Any], corner: Sequence[int], factor: Sequence[int]) -> None:
    """Take every `factor`-th voxel of the level above, of a few of its chunks at a time.

    Args:
        corner: the place in its own level at which `held` begins.
    """
    chunks = tuple(math.ceil(chunk / f) for chunk, f in zip(above.chunks, factor, strict=True))
    for part in boxes(held.shape, chunks, held.itemsize * math.prod(factor)):
        ends = zip(part, corner, factor, above.shape, strict=True)
        held[part] = above[tuple(slice((a + p.start) * f, min((a + p.stop) * f, n), f) for p, a, f, n in ends)]


def _create(group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], axes: str) -> Any:
    import numcodecs
    from zarr.codecs import BloscCodec

    spatial = len(axes.replace("C", ""))
    chunks = tuple(min(n, 1 if axis == "C" else CHUNK[spatial]) for n, axis in zip(shape, axes, strict=True))
    if group.metadata.zarr_format == 2:
        packed: Any = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
        own: dict[str, Any] = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    else:
        packed = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")
        own = {"dimension_names": tuple(axes.lower())}
    return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, compressors=packed, fill_value=0, **own)
