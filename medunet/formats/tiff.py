"""TIFF, ImageJ hyperstacks and OME-TIFF: ``.tif``, ``.tiff``, ``.ome.tif``, ``.ome.tiff``.

tifffile, not MONAI: MONAI's default for TIFF merges channels into z, ignores pixel sizes, cuts 16-bit colour down to 8
bits and writes only the first slice of a volume.
"""

from __future__ import annotations

import colorsys
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from medunet.errors import DataError, MedunetError
from medunet.formats import pixel_size
from medunet.formats.pixel_size import PixelSize
from medunet.formats.tiff_axes import channel_names, check_one_image, chosen_frame, known_axes, stated_axes
from medunet.formats.voxels import stored_type
from medunet.system.blocks import BLOCK, Empty, blocks, copy_in_tiles, gathered
from medunet.system.files import written_aside
from medunet.volume import MILLIMETRES, Grid, Origin, Volume, spacing_of

COLOUR_MAP = 320
"""TIFF's tag ColorMap. ImageJ keeps the lookup table of grey images in it; readers that do not know that ignore it."""

_GOLDEN_RATIO = 0.618034
_MOST_SEEN = 511
"""The largest end of ImageJ's display range for 16 bits at which value 1 is not yet drawn in the background's black."""

LARGEST_CLASSIC = 2**32 - 2**25
"""Bytes of voxels from which a file becomes BigTIFF, which ImageJ's own format cannot be."""

IMAGEJ_TYPES = ("uint8", "uint16", "int16", "float32")
OME_TYPES = ("uint8", "uint16", "int16", "int32", "uint32", "int8", "float32", "float64")
_DAMAGE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, SyntaxError, struct.error, zlib.error,
)  # fmt: skip
"""What tifffile and its codecs were seen to raise on cut and altered files; all of it says that a file is damaged."""

_LOGGER = logging.getLogger("tifffile")


@dataclass(frozen=True)
class _Header:
    """The properties of a file that a label map for it repeats.

    Attributes:
        axes: the spatial axes in the order of the file, slowest first: ``YX``, ``ZYX`` or an unusual one.
        kind: ``ome``, ``imagej`` or ``plain``.
        size: pixel size with the numbers of the file.
    """

    axes: str
    kind: str
    size: PixelSize


@dataclass(frozen=True)
class _Contents:
    """The first series of a file, its axes known.

    Attributes:
        shape, axes: of what is read.
        header: the properties that a label map repeats.
        runs: the places of this among the file's pixels: first pixels, and the number of pixels from each on.
        names: of the channels, empty if the file does not say them.
    """

    series: Any
    shape: tuple[int, ...]
    axes: str
    header: _Header
    details: dict[str, str]
    runs: tuple[range, int]
    names: tuple[str, ...] = ()

    def length(self, axis: str) -> int:
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(self.length(axis) for axis in "XYZ" if axis in self.axes)

    @property
    def channels(self) -> int:
        return self.length("C") * self.length("S")

    @property
    def affine(self) -> NDArray[np.float64]:
        return np.diag([*self.header.size.spacing, 1.0])


def read(path: Path, axes: str | None = None, empty: Empty = np.empty, frame: int | None = None) -> Volume:
    """Read the first series; the affine is the pixel size on its diagonal, in micrometres where it is known.

    C and S (colour samples, alpha too) are channels. Axes of length 1 are dropped, as TIFF writers add them at will:
    a stack of one plane is a two-dimensional image. Palette and inverted grey images keep their stored numbers.

    `axes` and `frame` are those of `dispatch.read_volume`; `axes` stand in place of what the file says.

    Raises:
        DataError: damaged or truncated, several time points and no `frame`, axes that the file does not say, `axes`
            that do not fit, pages that are not one image.
    """
    with _opened(path, axes, frame) as contents:
        try:
            with _logged_errors_raised(path):
                _check_whole(contents.series, path)
                array = _pixels(contents, path, empty)
        except _DAMAGE as error:
            raise error if isinstance(error, MedunetError) else _damaged(path, error) from error
    array = _channels_first(array, contents, empty)
    return Volume(array, contents.affine, contents.header.size.unit, origin=Origin(path, "tiff", contents.header))


def look(path: Path, axes: str | None = None, frame: int | None = None) -> Grid:
    """The grid from the header.

    Raises:
        DataError: as `read`, but for damaged pixels.
    """
    with _opened(path, axes, frame) as contents:
        dtype = str(np.dtype(contents.series.dtype).newbyteorder("="))
        size = contents.header.size
        details, names = contents.details, contents.names
        return Grid(contents.spatial, contents.channels, contents.affine, size.unit, dtype, "tiff", details, names)


def write(volume: Volume, path: Path, overwrite: bool = False, labels: bool = False) -> None:
    """Write a volume, compressed without loss, with its pixel size; `labels` get colours in ImageJ (`lookup_table`).

    ``.ome.tif`` and what was read from OME-TIFF becomes OME-TIFF. Everything else becomes an ImageJ hyperstack if
    ImageJ has the type (8 and 16 bits, float32), and OME-TIFF if not (32-bit labels), or beyond 4 GB. A source with an
    unusual order of axes (``XYZ``) keeps it, in a plain TIFF that names its axes for tifffile. Orientation cannot be
    said in TIFF and is lost; a volume of one slice reads back as two-dimensional.

    Raises:
        OutputError: not writable, or values that no TIFF type holds.
    """
    source: _Header | None = volume.origin.header if volume.origin and volume.origin.format == "tiff" else None
    axes = "ZYX"[-volume.dimensions :]
    if source is not None and len(source.axes) == volume.dimensions:
        axes = source.axes
    array, dtype = volume.array, stored_type(volume.array, OME_TYPES, path)
    big = array.size * dtype.itemsize > LARGEST_CLASSIC
    kind = _kind(dtype.name in IMAGEJ_TYPES and not big, path, axes, source)
    if volume.channels > 1:
        axes = "ZCYX" if kind == "imagej" and axes == "ZYX" else "C" + axes
    letters = "CXYZ"[: array.ndim]
    missing = tuple(letters.index(axis) for axis in letters if axis not in axes)
    planes = array.transpose([*missing, *(letters.index(axis) for axis in axes)])
    planes = planes if volume.channels > 1 else planes[0]
    options = _options(kind, axes, _size_of(volume, source)) | {"bigtiff": big, "shape": planes.shape, "dtype": dtype}
    if labels and kind == "imagej" and dtype.kind == "u":
        options["extratags"] = [colour_map_tag()]
        options["metadata"] |= dict(zip(("min", "max"), display_range(array.max(), 8 * dtype.itemsize), strict=True))
    with written_aside(path, overwrite) as aside:
        pages = _pages(gathered(planes, path.parent), dtype)
        tifffile.imwrite(aside, pages, compression="zlib", photometric="minisblack", buffersize=BLOCK, **options)


def _pages(planes: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """The pages, of blocks that are copied because tifffile holds several pages while it compresses them."""
    for block in blocks(planes, whole=2):
        held = np.array(block, dtype, order="C")
        for index in np.ndindex(held.shape[:-2]):
            yield held[index]


def _kind(imagej: bool, path: Path, axes: str, source: _Header | None) -> str:
    if axes not in ("ZYX", "YX"):
        return "plain"
    named = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    if named or (source is not None and source.kind == "ome"):
        return "ome"
    return "imagej" if imagej else "ome"


def _options(kind: str, axes: str, size: PixelSize) -> dict[str, Any]:
    """Arguments that tell tifffile axes and pixel size."""
    if kind == "ome":
        return {"ome": True, "metadata": {"axes": axes, **size.ome()}}
    resolution = {} if size.resolution is None else {"resolution": size.resolution, "resolutionunit": size.tag}
    described = {"axes": axes, **size.description()}
    return ({"imagej": True} if kind == "imagej" else {}) | {"metadata": described} | resolution


def _size_of(volume: Volume, source: _Header | None) -> PixelSize:
    """The source's own numbers where the grid is still its grid."""
    known = source.size if source is not None and source.size.unit == volume.unit else None
    if known and np.array_equal(volume.affine, np.diag([*known.spacing, 1.0])):
        return known
    factor = MILLIMETRES.get(volume.unit, 1.0) / (1.0 if volume.unit == "pixel" else MILLIMETRES["um"])
    x, y, z = (factor * length for length in spacing_of(volume.affine, 3))
    return PixelSize.of((x, y, z), "pixel" if volume.unit == "pixel" else "um")


def lookup_table() -> NDArray[np.uint8]:
    """Colours of labels, ``(3, 256)`` red, green and blue: index 0 is black, all others are light and strong."""
    colours = [(0.0, 0.0, 0.0)]
    for index in range(255):
        # hues by the golden ratio never repeat; steps of lightness set neighbours apart without hue as well
        lightness, saturation = ((0.62, 0.85), (0.78, 0.75), (0.52, 0.60))[index % 3]
        colours.append(colorsys.hls_to_rgb((0.1 + index * _GOLDEN_RATIO) % 1, lightness, saturation))
    found: NDArray[np.uint8] = np.rint(np.array(colours).T * 255).astype(np.uint8)
    return found


def colour_map_tag() -> tuple[int, str, int, tuple[int, ...], bool]:
    """The tag as tifffile takes it, of all 16 bits, as ImageJ's own files have it.

    It goes into every page: ImageJ takes 8-bit pages with and without it for different kinds, and opens the first only.
    """
    values = (lookup_table().astype(np.uint16) * 257).ravel()
    return COLOUR_MAP, "H", values.size, tuple(values.tolist()), False


def display_range(top: float, bits: int) -> tuple[float, float]:
    """ImageJ's `min` and `max`, so that no object is black.

    With 8 bits, and labels up to 255, the index of the colour is the label. Larger labels share colours, and those
    above 511 all have the last one: a wider range would hide the first ones in the background.
    """
    return 0.0, 255.0 if bits == 8 or top <= 255 else float(_MOST_SEEN)


@contextmanager
def _opened(path: Path, axes: str | None, frame: int | None = None) -> Iterator[_Contents]:
    # our own handle: tifffile leaves its own open when a file is cut within its header
    with path.open("rb") as handle:
        try:
            with _logged_errors_raised(path):
                file = tifffile.TiffFile(handle, name=path.name, _multifile=False)  # OME-XML could name any other file
                contents = _contents(file, path, axes, frame)
        except _DAMAGE as error:
            raise error if isinstance(error, DataError) else _damaged(path, error) from error
        yield contents


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{path}: not a TIFF, or damaged or truncated ({reason[:160]}); make or copy it again")


def _contents(file: Any, path: Path, axes: str | None, frame: int | None) -> _Contents:
    series = file.series[0]
    kind = series.kind if series.kind in ("ome", "imagej") else "plain"
    if file.is_ome:
        size = pixel_size.from_ome(file.ome_metadata or "")
    else:
        described = (file.imagej_metadata if kind == "imagej" else next(iter(file.shaped_metadata or ()), None)) or {}
        size = pixel_size.from_tags(series.keyframe, described, kind == "imagej")
    check_one_image(file, path, axes is not None)
    shape = tuple(int(n) for n in series.shape)
    letters = (known_axes if axes is None else stated_axes)(series.axes if axes is None else axes, shape, path, frame)
    runs = _runs(letters, shape, chosen_frame(letters, shape, path, frame))
    details = {"TIFF axes": letters + ("" if axes is None else " (stated)"), "TIFF shape": "×".join(map(str, shape))}
    details |= {"TIFF kind": kind, "compression": series.keyframe.compression.name.lower()}
    kept = [i for i, letter in enumerate(letters) if letter in "XY" or (shape[i] > 1 and letter in "CSZ")]
    letters, shape = "".join(letters[i] for i in kept), tuple(shape[i] for i in kept)
    spatial = "".join(letter for letter in letters if letter in "XYZ")
    if len(file.series) > 1:
        details["warning"] = f"{len(file.series)} image series in this file; the first is read"
    if size.note and "Z" in spatial:
        details["pixel size"] = size.note
    if "Z" not in spatial:
        size = replace(size, spacing=(*size.spacing[:2], 1.0))
    contents = _Contents(series, shape, letters, _Header(spatial, kind, size), details, runs)
    return replace(contents, names=channel_names(file, kind, contents.channels))


def _runs(axes: str, shape: tuple[int, ...], frame: int | None) -> tuple[range, int]:
    """The places of a frame's pixels in the series, in the order of the file; of all pixels without a frame."""
    if frame is None:
        return range(1), int(np.prod(shape))
    at = axes.index("T")
    inner, times = int(np.prod(shape[at + 1 :])), shape[at]
    return range(frame * inner, int(np.prod(shape)), times * inner), inner


def _check_whole(series: Any, path: Path) -> None:
    """Every strip and tile must lie within the file: tifffile would fill what is missing with zeros."""
    size = series.parent.filehandle.size
    if series.dataoffset is not None:
        ends = [series.dataoffset + series.size * np.dtype(series.dtype).itemsize]
    else:
        if any(page is None for page in series.pages):
            raise DataError(
                f"{path}: pages of this image are missing or in other files; expected one whole "
                "file\nsave the set as one OME-TIFF (Fiji: Bio-Formats Exporter)"
            )
        parts = [part for page in series.pages for part in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not parts or any(count == 0 for _, count in parts):
            raise DataError(f"{path}: parts of this image are empty; write it again without sparse tiles")
        ends = [offset + count for offset, count in parts]
    if max(ends) > size:
        raise DataError(f"{path}: truncated: its pixels end at byte {max(ends):,}, the file at {size:,}; copy it again")


def _pixels(contents: _Contents, path: Path, empty: Empty) -> NDArray[Any]:
    """The array in the order of the file, `contents.axes`, in native byte order."""
    series = contents.series
    dtype = np.dtype(series.dtype).newbyteorder("=")
    if dtype.kind not in "buif":
        raise DataError(f"{path}: {dtype} pixels; expected real numbers")
    array = empty(contents.shape, dtype)
    starts, length = contents.runs
    if series.transform is not None:
        whole = series.asarray().reshape(-1)  # rare formats, which tifffile turns around as a whole
        copy_in_tiles(array, np.concatenate([whole[at : at + length] for at in starts]).reshape(contents.shape))
        return array
    for part, start in zip(array.reshape(len(starts), length), starts, strict=True):
        if series.dataoffset is not None:
            _read_run(series, part, start)
        else:
            page = series.size // len(series)
            _read_pages(series, part.reshape(-1, page), start // page)
    return array


def _read_run(series: Any, flat: NDArray[Any], start: int) -> None:
    """Uncompressed pixels that follow each other, perhaps without a page for each plane."""
    file, offset = series.parent.filehandle, series.dataoffset + start * flat.itemsize
    for block in blocks(flat):
        file.read_array(series.parent.byteorder + flat.dtype.char, block.size, offset, out=block)
        offset += block.nbytes


def _read_pages(series: Any, pages: NDArray[Any], start: int) -> None:
    """Groups of pages from page `start` on, which tifffile decodes in parallel."""
    for block in blocks(pages, whole=1):
        stop = start + len(block)
        series.parent.asarray(series=series, key=slice(start, stop), out=block)  # it changes the shape of `out`
        start = stop


def _channels_first(array: NDArray[Any], contents: _Contents, empty: Empty) -> NDArray[Any]:
    """``(channel, *spatial)`` of an array in the order of the file."""
    array = array.transpose([contents.axes.index(axis) for axis in "CSXYZ" if axis in contents.axes])
    if {"C", "S"} <= set(contents.axes):
        scattered, array = array, empty(array.shape, array.dtype)  # two axes become one, which no view can
        copy_in_tiles(array, scattered)
    return array.reshape((contents.channels, *contents.spatial))


@contextmanager
def _logged_errors_raised(path: Path) -> Iterator[None]:
    """Turn the errors that tifffile only logs (lost pages, contradicting metadata) into one of ours."""
    messages: list[str] = []

    def kept(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            messages.append(record.getMessage())
        return False

    _LOGGER.addFilter(kept)
    try:
        yield
    finally:
        _LOGGER.removeFilter(kept)
    if messages:
        raise _damaged(path, ValueError(messages[0]))
