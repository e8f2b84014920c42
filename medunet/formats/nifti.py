"""NIfTI-1 and NIfTI-2: ``.nii``, ``.nii.gz`` and pairs ``.hdr``/``.img``.

nibabel directly, not MONAI: MONAI's writer drops codes and units and falsifies the qform of sheared scans, its reader
silently drops imaginary parts and cannot read RGB; and neither checks the checksum of a ``.nii.gz``.
"""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medunet.errors import DataError
from medunet.formats.voxels import DEFLATE_LIMIT, inflated, read_voxels, stored_type
from medunet.system.blocks import Empty, copy_in_tiles, ordered_blocks
from medunet.system.files import written_aside
from medunet.system.scratch import release
from medunet.volume import MILLIMETRES, Grid, Origin, Volume, check_affine

TYPES = ("uint8", "int16", "uint16", "int32", "uint32", "int8", "float32", "float64")
LARGEST_NIFTI1_AXIS = 32767
_UNITS = {0: ("mm", 1.0), 1: ("mm", 1000.0), 2: ("mm", 1.0), 3: ("um", 1.0)}
_QUIET = logging.Logger("nibabel headers, silent", level=logging.CRITICAL + 1)
_COLOURS = {("R", "G", "B"): 3, ("R", "G", "B", "A"): 4}


@dataclass(frozen=True)
class _Contents:
    """A checked header and what its numbers mean."""

    header: Any
    offset: int
    single: bool
    dtype: np.dtype[Any]
    spatial: tuple[int, ...]
    channels: int
    affine: NDArray[np.float64]
    unit: str
    scaling: tuple[float, float] | None

    @property
    def voxels(self) -> int:
        """Elements in the file; one RGB triple is one element."""
        return int(np.prod(self.spatial)) * (1 if self.dtype.names else self.channels)

    @property
    def array_dtype(self) -> np.dtype[Any]:
        if self.scaling:
            return np.dtype(np.float32)
        return np.dtype(np.uint8) if self.dtype.names else self.dtype.newbyteorder("=")


def read(path: Path, empty: Empty = np.empty) -> Volume:
    """Read one image; the affine is nibabel's (sform if its code is set, else qform, else the fallback).

    ``(X, Y, Z, C)``, ITK's ``(X, Y, Z, 1, C)`` and RGB become channels; ``(X, Y)`` is two-dimensional and
    ``(X, Y, 1)`` a volume of one slice. Voxels keep the type on disk, unless ``scl_slope`` scales them: then float32.
    A file without a unit is in millimetres, as everybody assumes.

    Raises:
        DataError: truncated or damaged (checksum and byte count are verified), complex, or without a usable grid.
    """
    header_path, voxel_path = _files(path)
    with _stream(header_path) as (stream, most):
        contents = _parse(stream, header_path)
        if contents.single:
            flat = read_voxels(stream, contents.dtype, contents.voxels, path, most, empty)
    if not contents.single:
        with _stream(voxel_path) as (stream, most):
            stream.read(contents.offset)
            flat = read_voxels(stream, contents.dtype, contents.voxels, voxel_path, most, empty)
    origin = Origin(path, "nifti", contents.header)
    return Volume(_shaped(flat, contents, empty), contents.affine, contents.unit, origin)


def files(path: Path) -> list[Path]:
    """The file, or header and voxels of a pair."""
    return list(dict.fromkeys(_files(path)))


def look(path: Path) -> Grid:
    """The grid from the header; the voxels are not read.

    Raises:
        DataError: not NIfTI, or a header that `read` would refuse.
    """
    header_path, _ = _files(path)
    with _stream(header_path) as (stream, _most):
        contents = _parse(stream, header_path)
    header = contents.header
    details = {
        "NIfTI": "2" if header["sizeof_hdr"] == 540 else "1",
        "sform code": str(int(header["sform_code"])),
        "qform code": str(int(header["qform_code"])),
        "stored as": str(contents.dtype if not contents.dtype.names else "RGB"),
    }
    if warning := _disagreement(header):
        details["warning"] = warning
    elif not header["sform_code"] and not header["qform_code"]:
        details["warning"] = "sform and qform codes are 0: sides are unknown, left may be right"
    dtype = str(contents.array_dtype)
    return Grid(contents.spatial, contents.channels, contents.affine, contents.unit, dtype, "nifti", details)


def write(volume: Volume, path: Path, overwrite: bool = False) -> None:
    """Write one image, whole or not at all.

    A volume that was read from NIfTI keeps its header: qform, sform, both codes, units, description and extensions.
    Elsewhere sform and qform are both set from the affine (code 1), or the sform alone where the affine is sheared,
    which a qform cannot say. Several channels are ``(X, Y, Z, C)``; of a two-dimensional volume ``(X, Y, 1, C)``,
    which reads back as one slice. Nanometres become micrometres; ``pixel`` becomes the unknown unit.

    Raises:
        OutputError: not writable, or values that no NIfTI type holds.
    """
    pair = path.suffix.lower() in (".hdr", ".img")
    array = _laid_out(volume.array)
    header = _header_for(volume, array.shape, stored_type(array, TYPES, path), pair)
    if not pair:
        with written_aside(path, overwrite) as aside, ImageOpener(str(aside), "wb") as file:
            header.write_to(file)
            _write_voxels(array, header, file, path.parent)
        return
    header_path, voxel_path = path.with_suffix(".hdr"), path.with_suffix(".img")
    with written_aside(header_path, overwrite) as head, written_aside(voxel_path, overwrite) as voxels:
        with head.open("wb") as file:
            header.write_to(file)
        with voxels.open("wb") as file:
            _write_voxels(array, header, file, path.parent)


def _header_for(volume: Volume, shape: tuple[int, ...], dtype: np.dtype[Any], pair: bool) -> Any:
    """nibabel's header for the array as it is written, copied from the volume's source where there is one."""
    source = volume.origin.header if volume.origin and volume.origin.format == "nifti" else None
    second = max(shape) > LARGEST_NIFTI1_AXIS or (source is not None and source["sizeof_hdr"] == 540)
    if source is not None and second != (source["sizeof_hdr"] == 540):
        source = None  # a NIfTI-1 header cannot describe an axis this long
    kind = (nib.Nifti2Pair if pair else nib.Nifti2Image) if second else (nib.Nifti1Pair if pair else nib.Nifti1Image)
    header = _copied(source, kind.header_class) if source is not None else kind.header_class()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    if source is None or not _same_grid(source, volume):
        _set_grid(header, volume)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the display range of other values
    return header


def _write_voxels(array: NDArray[Any], header: Any, file: IO[bytes], folder: Path) -> None:
    """Block by block, in the header's type and byte order; nibabel would hold the whole of an array in a file."""
    file.seek(header.get_data_offset())
    for block in ordered_blocks(array.T, folder, header.get_data_dtype()):
        file.write(block.data)


def _disagreement(header: Any) -> str:
    """A warning about a qform that differs from the sform, which wins; empty if they agree."""
    if not (header["sform_code"] and header["qform_code"]):
        return ""
    try:
        difference = float(np.abs(header.get_sform() - header.get_qform()).max())
    except ValueError:  # nibabel on a quaternion longer than 1
        return "the qform is broken; the sform is used"
    return f"qform and sform differ by up to {difference:.3g}; the sform is used" if difference > 1e-3 else ""


def _files(path: Path) -> tuple[Path, Path]:
    """The file of the header and the file of the voxels."""
    if path.suffix.lower() not in (".hdr", ".img"):
        return path, path
    upper = path.suffix.isupper()
    header, voxels = (path.with_suffix(s.upper() if upper else s) for s in (".hdr", ".img"))
    for part in (header, voxels):
        if not part.is_file():
            raise DataError(f"{path}: its other half {part.name} is missing; keep .hdr and .img together")
    return header, voxels


@contextmanager
def _stream(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of a file, inflated where its name says so, and the most that it can hold."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
        handle.seek(0)
        if path.suffix.lower() != ".gz":
            if zipped:
                raise DataError(f"{path}: is gzip-compressed, but its name does not end in .gz; rename it to .nii.gz")
            yield handle, size
        elif zipped:
            yield inflated(handle), size * DEFLATE_LIMIT
        else:
            raise DataError(f"{path}: is not gzip, although its name ends in .gz; rename it to .nii, or copy it again")


def _parse(stream: IO[bytes], path: Path) -> _Contents:
    """Read and check the header; leaves a single file's stream at its first voxel."""
    try:
        header, single = _header(stream, path)
        header.check_fix(logger=_QUIET, error_level=40)
        offset = header.get_data_offset()
        if header["vox_offset"] != 0:
            header["vox_offset"] = 0  # belongs to this file, not to the ones written with this header
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype, slope, affine = header.get_data_dtype(), header.get_slope_inter(), header.get_best_affine()
    except (HeaderDataError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(f"{path}: broken NIfTI header: {error}") from error
    unit, factor = _UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    affine = np.diag([factor] * 3 + [1.0]) @ np.asarray(affine, np.float64)
    check_affine(affine, str(path))
    colours = _colours(dtype, path)
    spatial, channels = _layout(shape, path)
    if colours and channels > 1:
        raise DataError(f"{path}: {channels} RGB volumes in one file; expected one, split them first")
    scaling = None if colours or slope in ((None, None), (1.0, 0.0)) else (float(slope[0]), float(slope[1]))
    return _Contents(header, offset, single, dtype, spatial, colours or channels, affine, unit, scaling)


def _header(stream: IO[bytes], path: Path) -> tuple[Any, bool]:
    """nibabel's header with its extensions, unchecked, and whether voxels follow in the same file."""
    try:
        head = stream.read(348)
        second = head[4:7] in (b"n+2", b"ni2")
        head += stream.read(540 - 348) if second else b""
        single = (head[4:7] if second else head[344:347]) in (b"n+1", b"n+2")
        if not second and head[344:347] not in (b"n+1", b"ni1"):
            what = "Analyze 7.5, which does not know left from right," if path.suffix == ".hdr" else "not NIfTI"
            raise DataError(f"{path}: {what} or truncated; expected a NIfTI-1 or NIfTI-2 header")
        if single == (path.suffix.lower() == ".hdr"):
            raise DataError(f"{path}: the header says {'one file' if single else 'a pair .hdr/.img'}; rename the file")
        module = nib.nifti2 if second else nib.nifti1
        kind = getattr(module, f"Nifti{2 if second else 1}{'' if single else 'Pair'}Header")
        bare = kind(binaryblock=head, check=False)
        if single:
            _check_offset(bare, len(head), path)
            head += stream.read(bare.get_data_offset() - len(head))
        else:
            head += stream.read()
    except EOFError as error:
        raise DataError(f"{path}: truncated: the file ends within its header; copy it again") from error
    except zlib.error as error:
        raise DataError(f"{path}: damaged: its compressed data cannot be decoded ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    with warnings.catch_warnings(action="ignore"):  # on extensions whose size is not a multiple of 16: harmless
        return kind.from_fileobj(io.BytesIO(head), check=False), single


def _check_offset(header: Any, least: int, path: Path) -> None:
    offset = float(header["vox_offset"])
    if not (offset == 0 or least <= offset < 2**31) or offset % 1:
        raise DataError(f"{path}: broken NIfTI header: voxels cannot start at byte {offset:g}")


def _colours(dtype: np.dtype[Any], path: Path) -> int:
    """Channels of an RGB or RGBA type, 0 for plain numbers."""
    if dtype.kind == "c":
        raise DataError(f"{path}: complex voxels; expected real numbers, write magnitude or phase to a file of its own")
    return _COLOURS[dtype.names] if dtype.names else 0


def _layout(shape: tuple[int, ...], path: Path) -> tuple[tuple[int, ...], int]:
    """Spatial shape and channels of an array on disk."""
    if min(shape, default=0) < 1:
        raise DataError(f"{path}: broken NIfTI header: shape {shape} holds no voxel")
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) in (2, 3):
        return shape, 1
    if len(shape) == 4:
        return shape[:3], shape[3]
    if len(shape) == 5 and shape[3] == 1:
        return shape[:3], shape[4]
    raise DataError(f"{path}: shape {shape}; expected (x, y), (x, y, z), (x, y, z, channel) or (x, y, z, 1, channel)")


def _shaped(flat: NDArray[Any], contents: _Contents, empty: Empty) -> NDArray[Any]:
    """``(channel, *spatial)`` from the elements in the order of the file."""
    if contents.dtype.names:
        return flat.view(np.uint8).reshape((contents.channels, *contents.spatial), order="F")
    if contents.scaling:
        flat = _scaled(flat, *contents.scaling, empty)
    if flat.dtype.kind == "f" and flat.dtype.itemsize > 8:
        wide, flat = flat, empty(flat.shape, np.float64)
        copy_in_tiles(flat, wide)
    return np.moveaxis(flat.reshape((*contents.spatial, contents.channels), order="F"), -1, 0)


def _scaled(flat: NDArray[Any], slope: float, intercept: float, empty: Empty) -> NDArray[np.float32]:
    """``slope * value + intercept`` in double precision, block by block, so that no float64 copy is held."""
    scaled = empty(flat.shape, np.float32)
    for start in range(0, len(flat), 1 << 20):
        block = slice(start, start + (1 << 20))
        scaled[block] = flat[block].astype(np.float64) * slope + intercept
        release(flat)
        release(scaled)
    return scaled


def _laid_out(array: NDArray[Any]) -> NDArray[Any]:
    if len(array) == 1:
        return np.asarray(array[0])
    last = np.moveaxis(array, 0, -1)
    return last if last.ndim == 4 else last[:, :, np.newaxis]


def _copied(source: Any, kind: Any) -> Any:
    """`source`'s fields and extensions in a header of another kind (single file or pair)."""
    header = kind(endianness=source.endianness, extensions=tuple(source.extensions))
    for name in source:
        if name not in ("magic", "vox_offset"):
            header[name] = source[name]
    return header


def _same_grid(source: Any, volume: Volume) -> bool:
    unit, factor = _UNITS.get(int(source["xyzt_units"]) & 7, ("mm", 1.0))
    affine = np.diag([factor] * 3 + [1.0]) @ source.get_best_affine()
    return unit == volume.unit and np.array_equal(affine, volume.affine)


def _set_grid(header: Any, volume: Volume) -> None:
    """Say the volume's affine and unit; codes that are set already stay."""
    to_micrometres = MILLIMETRES["nm"] / MILLIMETRES["um"]
    unit, factor = ("um", to_micrometres) if volume.unit == "nm" else (volume.unit, 1.0)
    affine = np.diag([factor] * 3 + [1.0]) @ volume.affine
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    orthogonal = np.allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    header.set_qform(affine, code=(int(header["qform_code"]) or 1) if orthogonal else 0, strip_shears=True)
    header.set_sform(affine, code=int(header["sform_code"]) or 1)
    header.set_xyzt_units({"um": "micron", "mm": "mm"}.get(unit, "unknown"), header.get_xyzt_units()[1])
