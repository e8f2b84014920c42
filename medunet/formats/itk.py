"""NRRD and MetaImage: ``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``.

ITK reads the geometry and writes the headers. Voxels are read here, not through MONAI's ITKReader: ITK takes a damaged
``.mha`` for whole, its Python wrapping has no int8, no 64-bit integers and few vectors (8-bit pairs, 16-bit RGB and
five probabilities all raise TemplateTypeError; itk 5.4.7), and it accepts a negative spacing. Voxels are written here,
because ITK needs them in memory three times: as an array, as its image, and compressed.
"""

from __future__ import annotations

import bz2
import re
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError, OutputError
from medunet.formats.voxels import DEFLATE_LIMIT, inflated, read_voxels, stored_type
from medunet.system.blocks import Empty, copy_in_tiles, ordered_blocks
from medunet.system.files import check_free, written_aside
from medunet.volume import MILLIMETRES, Grid, Origin, Volume, check_affine

SCALARS = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
VECTORS = ("uint8", "int16", "uint16", "float32", "float64")
LONGEST_HEADER = 1 << 20
BZIP2_LIMIT = 1_200_000  # a block of about 40 bytes can stand for 45.9 MB of zeros
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "signed char": "i1", "int8": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1",
    "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2", "int16": "i2",
    "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2",
    "int": "i4", "signed int": "i4", "int32": "i4", "uint": "u4", "unsigned int": "u4", "uint32": "u4",
    "longlong": "i8", "long long": "i8", "long long int": "i8", "signed long long": "i8",
    "signed long long int": "i8", "int64": "i8", "ulonglong": "u8", "unsigned long long": "u8",
    "unsigned long long int": "u8", "uint64": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_NRRD_PACKINGS = {
    "raw": "raw", "gzip": "deflate", "gz": "deflate", "bzip2": "bzip2", "bz2": "bzip2", "ascii": "text", "text": "text",
    "txt": "text",
}  # fmt: skip
_HEADER_END = {True: re.compile(rb"^\s*ElementDataFile\s*=[^\n]*\n", re.MULTILINE), False: re.compile(rb"\n\r?\n")}
"""Of MetaImage, and of NRRD."""
LEVEL = 2  # of compression; ITK's own
_SPATIAL_KINDS = ("domain", "space", "time", "none", "???")


@dataclass(frozen=True)
class _Pose:
    """ITK's own description of a grid, in LPS millimetres; kept so that a label map gets the very same numbers."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]
    """Rows of the direction matrix; its columns are the axes."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(4, 4)``, RAS+."""
        n = len(self.spacing)
        lps = np.eye(4)
        lps[:n, :n] = np.array(self.direction) * np.array(self.spacing)
        lps[:n, 3] = self.origin
        return _RAS_TO_LPS @ lps


@dataclass(frozen=True)
class _VoxelData:
    """The place of the voxels in a file, and their packing.

    Attributes:
        file: the header's own file, or another one in the same folder.
        start: first byte of the voxels; -1: they are the file's last bytes.
        packing: ``raw``, ``deflate``, ``bzip2`` or ``text``.
        sizes: of every axis of the array on disk, fastest first.
        channel_axis: index in `sizes`, or None.
    """

    file: Path
    start: int
    packing: str
    dtype: np.dtype[Any]
    sizes: tuple[int, ...]
    channel_axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(n for axis, n in enumerate(self.sizes) if axis != self.channel_axis)

    @property
    def channels(self) -> int:
        return 1 if self.channel_axis is None else self.sizes[self.channel_axis]


def read(path: Path, empty: Empty = np.empty) -> Volume:
    """Read one image in millimetres, RAS+; vector components become channels.

    Raises:
        DataError: truncated or damaged (byte count and checksum are verified), more than three spatial axes, a negative
            spacing, or a layout that is not supported.
    """
    data, pose = _parsed(path)
    flat = _voxels(data, path, empty)
    array = flat.reshape(data.sizes, order="F")
    array = array[np.newaxis] if data.channel_axis is None else np.moveaxis(array, data.channel_axis, 0)
    return Volume(array, pose.affine, "mm", Origin(path, "itk", pose))


def files(path: Path) -> list[Path]:
    """The file and, where its header names another one, that of the voxels."""
    return list(dict.fromkeys([path, _voxel_data(path).file]))


def look(path: Path) -> Grid:
    """The grid from the header.

    Raises:
        DataError: a header that `read` would refuse.
    """
    data, pose = _parsed(path)
    details = {"voxels": f"{data.packing}, in {data.file.name}"}
    dtype = data.dtype.newbyteorder("=")
    return Grid(data.shape, data.channels, pose.affine, "mm", str(dtype), "itk", details)


def write(volume: Volume, path: Path, overwrite: bool = False) -> None:
    """Write one image, compressed, with the header that ITK gives it; several channels become a vector image.

    These formats mean millimetres: um and nm are converted, ``pixel`` is written as it is.

    Raises:
        OutputError: not writable, values that no type holds, or an oblique two-dimensional plane.
    """
    dtype = stored_type(volume.array, SCALARS if volume.channels == 1 else VECTORS, path)
    pose = _pose_of(volume, path)
    check_free(path, overwrite)
    voxels = ordered_blocks(volume.array.T if volume.channels > 1 else volume.array[0].T, path.parent, dtype)
    with written_aside(path, overwrite) as aside:
        header, file = _header_for(volume, dtype, pose, path)
        if file == path:
            with aside.open("wb") as local:
                local.write(_with_size(header, 0))
                size = _deflate(voxels, local, path)
                local.seek(0)
                local.write(_with_size(header, size))
            return
        with written_aside(file, overwrite) as beside:  # both are written before either takes its place
            with beside.open("wb") as companion:
                size = _deflate(voxels, companion, path)
            aside.write_bytes(_with_size(header, size))


def _with_size(header: bytes, size: int) -> bytes:
    """The header with the bytes of the compressed voxels; it has the same length for every `size`."""
    return re.sub(rb"^(CompressedDataSize =) .*$", b"\\1 %-20d" % size, header, flags=re.MULTILINE)


def _header_for(volume: Volume, dtype: np.dtype[Any], pose: _Pose, path: Path) -> tuple[bytes, Path]:
    """The header, and the file where it says that voxels are: its own, or one beside it.

    ITK only writes headers together with voxels, and names a separate voxel file after the header; so it writes one
    voxel into a folder of its own.
    """
    meta = _is_meta(path)
    channels, *spatial = volume.array.shape
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        made = Path(folder) / path.name
        _write_one_voxel(made, pose, dtype, channels, path)
        beside = [file.name for file in Path(folder).iterdir() if file != made]
        _, length = _header_lines(made, _HEADER_END[meta])
        text = made.read_bytes()[:length]
    if not text:  # ITK does not always notice a full disk
        raise OutputError(f"{path}: cannot be written; check the free disk space")
    sizes = " ".join(str(n) for n in (spatial if meta or channels == 1 else [channels, *spatial])).encode()
    header = re.sub(rb"^(DimSize =|sizes:) .*$", rb"\1 " + sizes, text, flags=re.MULTILINE)
    return header, path.with_name(beside[0]) if beside else path


def _write_one_voxel(made: Path, pose: _Pose, dtype: np.dtype[Any], channels: int, path: Path) -> None:
    one = [1] * len(pose.spacing)
    with _itk() as itk:
        image = itk.image_from_array(np.zeros(one + [channels] * (channels > 1), dtype), is_vector=channels > 1)
        image.SetRegions(one)  # ITK turns an array around that is also contiguous in Fortran's order
        image.SetSpacing(pose.spacing)
        image.SetOrigin(pose.origin)
        image.SetDirection(itk.matrix_from_array(np.array(pose.direction)))
        try:
            itk.imwrite(image, str(made), compression=True)
        except RuntimeError as error:
            raise OutputError(f"{path}: cannot be written; check the folder and the free disk space") from error


def _deflate(voxels: Iterator[NDArray[Any]], file: IO[bytes], path: Path) -> int:
    """Write compressed voxels, zlib's stream in MetaImage and gzip's in NRRD; returns their bytes."""
    packer = zlib.compressobj(LEVEL, wbits=15 if _is_meta(path) else 31)
    size = sum(file.write(packer.compress(block.data)) for block in voxels)
    return size + file.write(packer.flush())


@contextmanager
def _itk() -> Iterator[Any]:
    """ITK, imported when needed. It loads its parts at first use, and their SWIG classes raise a DeprecationWarning
    while they are made: where warnings are errors, that crashes the interpreter (segmentation fault, itk 5.4.7)."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        import itk

        yield itk


def _pose_of(volume: Volume, path: Path) -> _Pose:
    """The grid in ITK's terms; exactly the source's numbers where the volume still lies on its grid."""
    origin = volume.origin
    if origin and origin.format == "itk" and volume.unit == "mm":
        pose: _Pose = origin.header
        if len(pose.spacing) == volume.dimensions and np.array_equal(pose.affine, volume.affine):
            return pose
    scale = np.diag([MILLIMETRES.get(volume.unit, 1.0)] * 3 + [1.0])
    lps = _RAS_TO_LPS @ scale @ volume.affine
    n = volume.dimensions
    spacing = np.linalg.norm(lps[:n, :n], axis=0)
    if n == 2 and (np.abs(lps[2, :2]).max() > 1e-6 * spacing.max() or spacing.min() == 0):
        raise OutputError(f"{path}: an oblique two-dimensional plane has no place in this format; write .nii.gz")
    direction = lps[:n, :n] / spacing
    direction = np.where(np.abs(direction) < 1e-15, 0.0, direction)  # ITK's SVD complains about denormal numbers
    rows = tuple(tuple(float(v) for v in row) for row in direction)
    return _Pose(tuple(float(s) for s in spacing), tuple(float(o) for o in lps[:n, 3]), rows)


def _parsed(path: Path) -> tuple[_VoxelData, _Pose]:
    data = _voxel_data(path)
    if min(data.sizes, default=0) < 1:
        raise DataError(f"{path}: broken header: an array of shape {data.sizes} holds no voxel")
    if len(data.shape) not in (2, 3):
        raise DataError(
            f"{path}: {len(data.shape)} spatial axes {data.shape}; expected 2 or 3 (channels are components or, "
            "in NRRD, an axis whose kind is list or vector), split a series into volumes"
        )
    pose = _pose(path, data.shape)
    check_affine(pose.affine, str(path))
    return data, pose


def _voxel_data(path: Path) -> _VoxelData:
    return (_meta_voxel_data if _is_meta(path) else _nrrd_voxel_data)(path)


def _is_meta(path: Path) -> bool:
    return path.suffix.lower() in (".mha", ".mhd")


def _pose(path: Path, shape: tuple[int, ...]) -> _Pose:
    """Spacing, origin and direction as ITK understands the header (spaces, orientations, synonyms of keys)."""
    with _itk() as itk:
        reader = itk.MetaImageIO.New() if _is_meta(path) else itk.NrrdImageIO.New()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f"{path}: ITK cannot read this header: {reason}") from error
        n = reader.GetNumberOfDimensions()
        found = tuple(int(reader.GetDimensions(axis)) for axis in range(n))
        columns = [tuple(float(v) for v in reader.GetDirection(axis)) for axis in range(n)]
        spacing = tuple(float(reader.GetSpacing(axis)) for axis in range(n))
        origin = tuple(float(reader.GetOrigin(axis)) for axis in range(n))
    if found != shape:
        raise DataError(f"{path}: contradictory header: shape {shape}, but ITK finds {found}")
    return _Pose(spacing, origin, tuple(zip(*columns, strict=True)))


def _header_lines(path: Path, ends: re.Pattern[bytes]) -> tuple[list[str], int]:
    """The text before the voxels, and the byte at which they start."""
    with path.open("rb") as handle:
        head = handle.read(LONGEST_HEADER)
    end = ends.search(head)
    text = head[: end.end()] if end else head
    if b"\0" in text:
        raise DataError(f"{path}: truncated, damaged or not of the format that its name says: no header found")
    return text.decode("utf-8", "replace").splitlines(), len(text)


def _meta_voxel_data(path: Path) -> _VoxelData:
    lines, start = _header_lines(path, _HEADER_END[True])
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    header = {key.strip(): value.strip() for key, value in pairs}
    try:
        sizes = tuple(int(n) for n in header["DimSize"].split())
        dtype = np.dtype(_META_TYPES[header["ElementType"].removesuffix("_ARRAY")])
        channels = int(header.get("ElementNumberOfChannels", 1))
        spacing = [float(s) for s in header.get("ElementSpacing", header.get("ElementSize", "1")).split()]
        skipped = int(header.get("HeaderSize", 0))
        name = header["ElementDataFile"]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not MetaImage, truncated, or a broken header ({error}); copy it again") from error
    if min(spacing, default=0) <= 0:
        raise DataError(f"{path}: ElementSpacing {spacing}; expected positive numbers, put flips into TransformMatrix")
    order = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
    packing = "deflate" if _true(header.get("CompressedData", "False")) else "raw"
    if not _true(header.get("BinaryData", "True")):
        packing = "text"
    file, first = (path, start) if name.upper() == "LOCAL" else (_companion(path, name), skipped)
    sizes, channel_axis = ((channels, *sizes), 0) if channels > 1 else (sizes, None)
    return _VoxelData(file, first, packing, dtype.newbyteorder(">" if _true(order) else "<"), sizes, channel_axis)


def _true(value: str) -> bool:
    return value[:1] in "TtYy1"


def _companion(path: Path, name: str) -> Path:
    """The separate voxel file: one, in the header's own folder, so that no header can name another file of the disk."""
    if not name or name.upper().startswith("LIST") or "%" in name or name != Path(name).name:
        raise DataError(f"{path}: its voxels are said to be in {name!r}; expected one file in the same folder")
    file = path.with_name(name)
    if not file.is_file():
        raise DataError(f"{path}: its voxels are in {name}, which is missing; keep both files together")
    return file


def _nrrd_voxel_data(path: Path) -> _VoxelData:
    lines, start = _header_lines(path, _HEADER_END[False])
    if not lines or not lines[0].startswith("NRRD"):
        raise DataError(f"{path}: not NRRD (its first line should be NRRD0004 or similar), or damaged")
    pairs = [line.split(":", 1) for line in lines[1:] if ":" in line and ":=" not in line and line[:1] != "#"]
    header = {key.strip().lower(): value.strip() for key, value in pairs}
    try:
        sizes = tuple(int(n) for n in header["sizes"].split())
        dtype = np.dtype(_NRRD_TYPES[header["type"].lower().removesuffix("_t")])
        encoding = header["encoding"].lower()
        skips = tuple(int(header.get(f"{what} skip", header.get(f"{what}skip", 0))) for what in ("line", "byte"))
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: truncated, or a broken NRRD header ({error}); copy it again") from error
    packing = _NRRD_PACKINGS.get(encoding)
    if packing is None or skips[0] != 0 or (skips[1] != 0 and packing != "raw"):
        raise DataError(
            f"{path}: NRRD with encoding {encoding} and line or byte skip {skips} is not supported; resave it"
        )
    big = header.get("endian", "little").lower() == "big"
    name = header.get("data file", header.get("datafile"))
    file = path if name is None else _companion(path, name)
    first = skips[1] if name is not None or skips[1] < 0 else start + skips[1]
    return _VoxelData(file, first, packing, dtype.newbyteorder(">" if big else "<"), sizes, _channel_axis(header, path))


def _channel_axis(header: dict[str, str], path: Path) -> int | None:
    """The axis that is no direction in space: by its kind, or because `space directions` says none."""
    kinds = header.get("kinds", "").lower().split()
    axes = [axis for axis, kind in enumerate(kinds) if kind not in _SPATIAL_KINDS]
    if not axes:
        directions = re.findall(r"none|\([^)]*\)", header.get("space directions", "").lower())
        axes = [axis for axis, direction in enumerate(directions) if direction == "none"]
    if len(axes) > 1:
        raise DataError(f"{path}: NRRD with {len(axes)} axes that are not spatial ({kinds}); expected at most one")
    return axes[0] if axes else None


@contextmanager
def _stream(data: _VoxelData) -> Iterator[tuple[IO[bytes], int]]:
    size = data.file.stat().st_size
    with data.file.open("rb") as handle:
        expected = int(np.prod(data.sizes)) * data.dtype.itemsize
        handle.seek(data.start if data.start >= 0 else max(0, size - expected))
        if data.packing == "deflate":
            yield inflated(handle), size * DEFLATE_LIMIT
        elif data.packing == "bzip2":
            with bz2.open(handle) as stream:
                yield stream, size * BZIP2_LIMIT
        else:
            yield handle, size


def _voxels(data: _VoxelData, path: Path, empty: Empty) -> NDArray[Any]:
    count = int(np.prod(data.sizes))
    with _stream(data) as (stream, most):
        if data.packing != "text":
            return read_voxels(stream, data.dtype, count, path, most, empty)
        try:
            values = np.array(stream.read().split(), dtype=np.float64)  # text is rare and small, so it is read whole
        except ValueError as error:
            raise DataError(f"{path}: damaged: its voxels are said to be text, but are not numbers") from error
    if len(values) != count:
        raise DataError(
            f"{path}: truncated: found {len(values)} numbers, but its header promises {count}; copy it again"
        )
    voxels = empty((count,), data.dtype.newbyteorder("="))
    copy_in_tiles(voxels, values)
    return voxels
