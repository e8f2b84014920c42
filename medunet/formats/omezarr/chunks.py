"""Chunks of a Zarr array: their files counted and checked for damage, boxes of them, and the lower resolutions.

Viewers open large images by their lower resolutions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError
from medunet.formats.omezarr.ngff import Space
from medunet.formats.omezarr.nodes import DOCUMENTS, Frames, StoredArray
from medunet.system.blocks import BLOCK, copy_in_tiles

CHUNK = {2: 1024, 3: 128}
"""Length of a chunk along each axis: 2 MiB of labels in three dimensions, so that large scans are thousands of files
and not a million."""

SMALL = 512
"""Voxels along the longest axis up to which an image needs no lower resolution: a viewer shows it as it is."""

MOST_LEVELS = 8
BOX = BLOCK
"""Bytes that are decoded at a time; a single chunk may be more."""

_HEADER = 16
"""Bytes of a frame's header; the last four of them say how long the frame is."""

_ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard does not have."""


def count_chunks(array: StoredArray) -> tuple[int, int]:
    """The number of files that an array has, and the number that it can have.

    One that is missing means the fill value everywhere, as Zarr has it: writers leave out what is empty.

    Raises:
        DataError: none is there, but other files are: the metadata say another naming, and all would seem empty.
    """
    found = others = 0
    for name in _relative_files(array.folder):
        match = array.key.fullmatch(name)
        if match and all(int(n) < length for n, length in zip(match.groups(), array.grid, strict=True)):
            found += 1
        elif not name.rpartition("/")[2].startswith(".") and name != "zarr.json":
            others += 1
    if others and not found:
        example = array.key.pattern.replace("(\\d+)", "0").replace("\\", "")
        raise DataError(
            f"{array.folder}: none of its {others} files has the name of a chunk, as its metadata say they are called, "
            f"such as {example!r}\nthe metadata are damaged, or of another array; copy it again"
        )
    return found, math.prod(array.grid)


def check_files(array: StoredArray) -> None:
    """Refuse damage that decoding does not notice.

    An empty file would count as missing where there are shards. And blosc is handed no length: of a cut frame it would
    decode whatever lies behind it in memory, so every frame's length is compared with its header.

    Raises:
        DataError: an empty or cut chunk, or one that cannot be read.
    """
    for name in _relative_files(array.folder):
        if not array.key.fullmatch(name):
            continue
        path = array.folder / name
        try:
            if path.stat().st_size == 0:
                raise DataError(f"{path}: a chunk is damaged or cut: the file is empty; make or copy it again")
            if array.frames is not None:
                _check_file(path, array.frames)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _check_file(path: Path, frames: Frames) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        for start, length in _places(file, size, frames):
            file.seek(min(start, size))
            header = file.read(_HEADER)
            said = int.from_bytes(header[-4:], "little") if len(header) == _HEADER else None
            if said != length - frames.tail or start + length > size:
                raise DataError(
                    f"{path}: a chunk is damaged or cut: it has {min(length, max(0, size - start)):,} bytes"
                    + ("" if said is None else f", its header says {said + frames.tail:,}")
                    + "; make or copy it again"
                )


def _places(file: IO[bytes], size: int, frames: Frames) -> Iterator[tuple[int, int]]:
    """Start and length of each frame in a file."""
    if not frames.shard:
        yield 0, size
        return
    length = frames.shard * 16
    file.seek(0 if frames.index_first else max(0, size - length - 4))
    index = file.read(length)
    if len(index) < length:
        yield 0, length + 4
        return
    yield from ((int(a), int(n)) for a, n in np.frombuffer(index, "<u8").reshape(-1, 2) if int(a) != _ABSENT)


def all_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted; those of the system and of editors (hidden, but no metadata) left out."""
    files = (folder / name for name in sorted(_relative_files(folder)))
    return [file for file in files if not file.name.startswith(".") or file.name in DOCUMENTS]


def _relative_files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        inside = Path(place).relative_to(folder).as_posix()
        yield from (name if inside == "." else f"{inside}/{name}" for name in names)


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
