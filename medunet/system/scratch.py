"""Arrays too large for memory: they live in unnamed files, of which the system keeps in memory what is being used."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medunet.errors import OutputError


@dataclass(frozen=True)
class Scratch:
    """Arrays that live in unnamed files once they are large, so that memory does not grow with a scan.

    Memory is only saved where arrays are gone through part by part, with `release` after each part.

    Attributes:
        folder: where the files are; made if it is missing. They have no name, so nothing is left there, however the
            program ends.
        limit: bytes from which an array lives in a file.
    """

    folder: Path
    limit: int = 32 * 2**20

    def empty(self, shape: Sequence[int], dtype: DTypeLike, order: Literal["C", "F"] = "C") -> NDArray[Any]:
        """An uninitialised array, as `np.empty` makes it. Its file is closed when the last view of it is gone.

        Raises:
            OutputError: the disk has no room for it.
        """
        size = math.prod(int(n) for n in shape) * np.dtype(dtype).itemsize
        if size < max(self.limit, 1):
            return np.empty(shape, dtype, order)
        return np.ndarray(tuple(shape), dtype, _mapped(self.folder, size), order=order)

    __call__ = empty


def release(array: NDArray[Any]) -> None:
    """Let go of the memory of an array that lives in a file; its content stays. No-op for any other array.

    It concerns the whole file, whichever view of it is given; what is used again is fetched from the file again.
    """
    mapping = _mapping_of(array)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def lives_in_file(array: NDArray[Any]) -> bool:
    """True where an array, or the array that it is a view of, was put into a file by a `Scratch`."""
    return _mapping_of(array) is not None


class _Mapping(mmap.mmap):
    """Ours, and shared with its file. Of a private mapping (numpy's mode ``c``), `release` would lose the content."""


def _mapping_of(array: NDArray[Any]) -> _Mapping | None:
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, _Mapping) else None


def _mapped(folder: Path, size: int) -> _Mapping:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), size, folder)
            return _Mapping(file.fileno(), size)  # it has its own descriptor of the file
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{folder}: no room for a temporary file of {size:,} bytes ({reason})\n"
            "free disk space there, or choose an output folder on another disk"
        ) from error


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    """Take the disk space now: where it ends later, writing to the mapping kills the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    # macOS and Windows reserve nothing; at least the space is there when we start
    if shutil.disk_usage(folder).free < size:
        raise OSError("not enough free space")
    os.truncate(descriptor, size)
