"""Files of a Zarr array's chunks, counted and checked for damage."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from medunet.errors import DataError
from medunet.formats.omezarr.nodes import DOCUMENTS, Frames, StoredArray

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
