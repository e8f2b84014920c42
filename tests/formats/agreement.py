"""What every format owes: header and volume agree, and what is written reads back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from medunet.errors import DataError
from medunet.formats.dispatch import read_grid, read_volume, write_volume
from medunet.system.scratch import Scratch, lives_in_file
from medunet.volume import Volume


def read_checked(path: Path, axes: str | None = None) -> Volume:
    """Read a file and check that its header-only look says the same, and that it reads the same into a file."""
    volume, grid = read_volume(path, axes=axes), read_grid(path, axes=axes)
    assert grid.shape == volume.shape
    assert grid.channels == volume.channels
    assert grid.dtype == str(volume.array.dtype)
    assert grid.unit == volume.unit
    assert volume.origin is not None and grid.format == volume.origin.format
    np.testing.assert_array_equal(grid.affine, volume.affine)
    assert volume.array.dtype.isnative and volume.array.flags.writeable
    check_same(read_through_file(path, axes), volume)
    return volume


def read_through_file(path: Path, axes: str | None = None) -> Volume:
    """Read with a `Scratch` that takes every array, however small; no file may ever be seen in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        volume = read_volume(path, axes=axes, scratch=Scratch(Path(folder), limit=0))
        assert not list(Path(folder).iterdir())
    assert lives_in_file(volume.array)
    return volume


def check_same(found: Volume, expected: Volume) -> None:
    """Two volumes have the same voxels, type, grid and origin; how they lie in memory may differ."""
    assert found.array.dtype == expected.array.dtype
    assert found.array.flags.writeable == expected.array.flags.writeable
    np.testing.assert_array_equal(found.array, expected.array, strict=True)
    np.testing.assert_array_equal(found.affine, expected.affine, strict=True)
    assert found.unit == expected.unit
    assert found.origin is not None and expected.origin is not None
    assert (found.origin.path, found.origin.format) == (expected.origin.path, expected.origin.format)


def error_of(path: Path, scratch: Scratch | None = None) -> str:
    """What reading says; empty if it succeeds."""
    try:
        read_volume(path, scratch=scratch)
    except DataError as error:
        return str(error)
    return ""


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_and_read(volume: Volume, path: Path) -> Volume:
    write_volume(volume, path, overwrite=True)
    return read_checked(path)


def check_label_grid(scan: Path, labels_path: Path, axes: str | None = None, rounding: float = 0.0) -> Volume:
    """Write a label map for a scan; it must lie on exactly the scan's grid. Returns it as read back.

    `rounding` is for NRRD, which stores the product of direction and spacing, so that ITK rounds their quotient again.
    """
    volume = read_checked(scan, axes)
    labels = np.arange(np.prod(volume.shape), dtype=np.int64).reshape((1, *volume.shape)) % 7
    back = write_and_read(volume.with_array(labels), labels_path)
    np.testing.assert_array_equal(back.array, labels)
    assert back.array.dtype == np.uint8
    np.testing.assert_allclose(back.affine, volume.affine, rtol=rounding, atol=rounding)
    assert back.unit == volume.unit
    return back


def refused_or_right(path: Path, expected: np.ndarray) -> None:
    """A damaged file is refused, in the same words whether or not it is read into a file; only the padding bits of a
    compressed block change nothing."""
    with tempfile.TemporaryDirectory() as folder:
        assert error_of(path, Scratch(Path(folder), limit=0)) == error_of(path)
    try:
        volume = read_volume(path)
    except DataError as error:
        assert path.name in str(error)
    else:
        np.testing.assert_array_equal(volume.array[0], expected)
