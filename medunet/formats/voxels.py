"""The bytes of voxels: counted and checksummed on the way in, given a type that the format can hold on the way out."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError, OutputError
from medunet.system.blocks import BLOCK, Empty, as_stored, blocks
from medunet.system.scratch import release

DEFLATE_LIMIT = 1032  # the format cannot compress better (zlib's technical details), so a larger claim is a lie
_PIECE = 1 << 18


class Inflater(io.RawIOBase):
    """A readable stream of the bytes inside a gzip or zlib stream; every checksum is verified at its end.

    nibabel and ITK stop reading when they have enough bytes, and so accept files with a wrong checksum.
    Several gzip members in a row are one stream, and zero padding after the last is ignored, as gzip itself does.

    Raises:
        EOFError: the compressed stream ends early.
        zlib.error: it is damaged.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._decoder = zlib.decompressobj(wbits=47)  # 47: zlib or gzip, whichever the first bytes say
        self._waiting = b""
        self._inside = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while True:
            block = self._waiting or self._source.read(_PIECE)
            if not block:
                if self._inside:
                    raise EOFError("the compressed stream ends early")
                return 0
            inflated = self._inflate(block, min(len(view), 4 * _PIECE))  # a block of zeros becomes 1000 times as long
            if inflated:
                view[: len(inflated)] = inflated
                return len(inflated)

    def _inflate(self, block: bytes, limit: int) -> bytes:
        if not self._inside:
            block = block.lstrip(b"\0")
            if not block:
                self._waiting = b""
                return b""
        inflated = self._decoder.decompress(block, limit)
        self._inside = not self._decoder.eof
        if self._decoder.eof:
            self._waiting = self._decoder.unused_data
            self._decoder = zlib.decompressobj(wbits=47)
        else:
            self._waiting = self._decoder.unconsumed_tail
        return inflated


def inflated(source: IO[bytes]) -> IO[bytes]:
    """A buffered stream of what is inside a gzip or zlib stream."""
    return cast("IO[bytes]", io.BufferedReader(Inflater(source), buffer_size=_PIECE))


def read_voxels(
    stream: IO[bytes], dtype: np.dtype[Any], count: int, path: Path, most: int, empty: Empty = np.empty
) -> NDArray[Any]:
    """Exactly `count` voxels in native byte order, and then the end of the stream.

    Args:
        most: the largest number of bytes that a file of this size can hold; checked before memory is taken.
        empty: makes the array; it is filled block by block.

    Returns:
        ``(count,)``, owned and writable.

    Raises:
        DataError: fewer or more bytes than the header promises, or a damaged stream.
    """
    expected = count * dtype.itemsize
    if expected > most:
        raise DataError(
            f"{path}: truncated, or a false header: it promises {expected:,} bytes of voxels, but a file of this "
            f"size can hold at most {most:,}\nmake or copy the file again"
        )
    voxels = empty((count,), dtype)
    found = _fill(stream, voxels.view(np.uint8), path)
    if found != expected:
        what = "truncated: " if found < expected else ""
        raise DataError(
            f"{path}: {what}found {found:,} bytes of voxels, but its header promises {expected:,}\n"
            "make or copy the file again"
        )
    if dtype.isnative:
        return voxels
    for block in blocks(voxels):
        block.byteswap(inplace=True)
    return voxels.view(dtype.newbyteorder("="))


def _fill(stream: IO[bytes], target: NDArray[np.uint8], path: Path) -> int:
    """Fill `target`, read on to the end of the stream, and count all bytes."""
    found, expected, view = 0, len(target), target.data
    beyond = bytearray(1 << 16)
    try:
        while got := stream.readinto(view[found : found + BLOCK] if found < expected else beyond):  # type: ignore[attr-defined]
            found += got
            release(target)
    except EOFError as error:
        raise DataError(
            f"{path}: truncated: the compressed data end after {found:,} of {expected:,} bytes, before their checksum\n"
            "make or copy the file again"
        ) from error
    except zlib.error as error:
        raise DataError(
            f"{path}: damaged: the compressed data cannot be decoded after {found:,} of {expected:,} bytes "
            f"({error})\nmake or copy the file again"
        ) from error
    return found


def stored_type(array: NDArray[Any], types: tuple[str, ...], path: Path) -> np.dtype[Any]:
    """The type, in native byte order, that a format stores an array in: its own, else the first that holds its values.

    The array itself is not cast, so that a writer can do that block by block. Booleans become 0 and 1, half precision
    becomes the first floating-point type; an empty array is never met, because a `Volume` has at least one voxel.

    Args:
        types: numpy names such as ``uint8``, integers from small to large, in the order of preference.

    Raises:
        OutputError: no integer type holds all values, or the format holds no floating-point numbers.
    """
    if array.dtype == np.bool_:
        return np.dtype(np.uint8)
    if array.dtype.name in types:
        return array.dtype.newbyteorder("=")
    if array.dtype.kind == "f":
        floats = [np.dtype(t) for t in types if np.dtype(t).kind == "f"]
        wide = [t for t in floats if t.itemsize >= array.dtype.itemsize] or floats[-1:]
        if wide:
            return wide[0]
        raise OutputError(f"{path}: this format holds whole numbers, found {array.dtype}; write .nii.gz or .tif")
    ends = [(int(block.min()), int(block.max())) for block in blocks(as_stored(array))]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    for name in types:
        kind = np.dtype(name)
        if kind.kind in "ui" and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    raise OutputError(f"{path}: values {low} to {high} do not fit into this format's types ({', '.join(types)})")
