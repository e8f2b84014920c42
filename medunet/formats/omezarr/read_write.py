"""OME-Zarr: folders ``.zarr`` and ``.ome.zarr``, Zarr 2 and 3, OME-NGFF 0.1 to 0.5; and plain Zarr arrays.

Metadata are read here and checked (`nodes`, `ngff`); the library `zarr` only moves voxels, chunk by chunk. The
optional extra `zarr` brings it.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError, MedunetError, MissingExtra, OutputError
from medunet.formats.omezarr import chunks, ngff, nodes
from medunet.formats.omezarr.chunks import boxes, reductions, write_levels
from medunet.formats.omezarr.ngff import Image, Space
from medunet.formats.omezarr.nodes import StoredArray
from medunet.formats.tiff_axes import chosen_frame, known_axes, stated_axes
from medunet.formats.voxels import stored_type
from medunet.system.blocks import Empty, copy_in_tiles
from medunet.system.files import folder_written_aside
from medunet.system.scratch import release
from medunet.system.wording import times_text
from medunet.volume import Grid, Origin, Volume

FORMAT = "zarr"
_NAME = re.compile(r"(\.ome)?\.zarr$", re.IGNORECASE)
TYPES = ("uint8", "int16", "uint16", "int32", "uint32", "int8", "float32", "float64")
WIDE_TYPES = (*TYPES, "int64", "uint64")
_DAMAGE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    EOFError, zlib.error,
)  # fmt: skip
"""What zarr and its codecs were seen to raise on cut and altered chunks."""


@dataclass(frozen=True)
class _Contents:
    """An image whose axes are known.

    Attributes:
        axes: of the array, one letter each.
        frame: the index along T, 0 where there is none.
        space: of the spatial axes that the volume keeps.
    """

    image: Image
    array: StoredArray
    axes: str
    frame: int
    space: Space
    stated: bool

    @property
    def kept(self) -> str:
        """The axes that are read, in the order of the file."""
        return "".join(axis for axis in self.axes if axis in self.space.axes or (axis == "C" and self.channels > 1))

    @property
    def channels(self) -> int:
        return self._length("C")

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(self._length(axis) for axis in "XYZ" if axis in self.space.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype.newbyteorder("=")

    def _length(self, axis: str) -> int:
        return self.array.shape[self.axes.index(axis)] if axis in self.axes else 1


def read(path: Path, axes: str | None = None, empty: Empty = np.empty, frame: int | None = None) -> Volume:
    """Read the full resolution of an image; the affine is scale and translation, in its own unit if that is mm, um, nm.

    Axes of length 1 are dropped, as they are of TIFF: an image of one plane is two-dimensional. What no chunk holds
    has the fill value, as Zarr has it.

    `axes` and `frame` are those of `dispatch.read_volume`; `axes` stand in place of what the file says.

    Raises:
        DataError: damaged, several images or time points and no choice, axes that are not said, or a codec or a type
            that is not read.
        MissingExtra: zarr is not installed.
    """
    zarr = _library()
    contents = _contents(path, axes, frame)
    chunks.count_chunks(contents.array)
    chunks.check_files(contents.array)
    array = empty([contents.array.shape[contents.axes.index(axis)] for axis in contents.kept], contents.dtype)
    with _chunk_errors_raised(path):
        source = zarr.open_array(contents.array.folder, mode="r", zarr_format=contents.array.zarr)
        if source.shape != contents.array.shape:
            raise ValueError(f"shape {source.shape}")
    _fill(array, source, contents, path)
    array = array.transpose([contents.kept.index(axis) for axis in "CXYZ" if axis in contents.kept])
    array = array.reshape((contents.channels, *contents.spatial))
    return Volume(array, contents.space.affine, contents.space.unit, Origin(path, FORMAT, contents.space))


def look(path: Path, axes: str | None = None, frame: int | None = None) -> Grid:
    """The grid from the metadata; no chunk is opened, and the errors are those of `read` but for damaged chunks."""
    _library()
    contents = _contents(path, axes, frame)
    space, names = contents.space, contents.image.channels
    names = names if len(names) == contents.channels else ()
    dtype, details = str(contents.dtype), _details(contents)
    return Grid(contents.spatial, contents.channels, space.affine, space.unit, dtype, FORMAT, details, names)


def files(path: Path) -> list[Path]:
    """Metadata and chunks of the image that is read; its lower resolutions and labels are not."""
    image = ngff.find_image(path)
    above = [place for place in (path, image.group.folder) if place != image.level.folder]
    documents = [file for place in dict.fromkeys(above) for file in nodes.documents(place)]
    return [*documents, *chunks.all_files(image.level.folder)]


def _contents(path: Path, stated: str | None, frame: int | None) -> _Contents:
    image = ngff.find_image(path)
    array = nodes.stored_array(image.level)
    axes = _axes(image, array, path, stated, frame)
    lengths = dict(zip(axes, array.shape, strict=True))
    index = chosen_frame(axes, array.shape, path, frame) or 0
    space = image.space(axes)
    if lengths.get("Z") == 1:
        space = space.without("Z")
    return _Contents(image, array, axes, index, space, stated is not None)


def _axes(image: Image, array: StoredArray, path: Path, stated: str | None, frame: int | None) -> str:
    """One letter for each axis of the array."""
    shape = array.shape
    if stated is not None:
        if "S" in stated.upper():
            raise DataError(f"{path}: --axes {stated}: Zarr has no colour samples (S); call them C")
        return stated_axes(stated, shape, path, frame)
    if not image.axes:
        example = {2: "YX", 3: "ZYX", 4: "CZYX"}.get(len(shape), "TCZYX")
        raise DataError(
            f"{path}: a plain Zarr array of shape {shape}, which does not say what its axes are\n"
            f"say it with --axes, for example --axes {example}"
        )
    if len(image.axes) != len(shape) or len(set(image.axes) - {"?"}) != len(image.axes.replace("?", "")):
        raise DataError(
            f"{path}: its metadata name the axes {image.axes}, but its array has the shape {shape}; "
            "make or copy it again, or say --axes"
        )
    unknown = [n for axis, n in zip(image.axes, shape, strict=True) if axis == "?"]
    if any(n > 1 for n in unknown) or not set("XY") <= set(image.axes):
        raise DataError(f"{path}: its axes are {image.axes} (? is none of t, c, z, y, x); say --axes, such as ZYX")
    lengths = tuple(n for axis, n in zip(image.axes, shape, strict=True) if axis != "?")
    known_axes(image.axes.replace("?", ""), lengths, path, frame)
    return image.axes


def _details(contents: _Contents) -> dict[str, str]:
    array, image, space = contents.array, contents.image, contents.space
    found, possible = chunks.count_chunks(array)
    shards = f" in shards of {times_text(array.files)}" if array.files != array.chunks else ""
    what = "files" if shards else "chunks"
    details = {
        "Zarr": f"version {array.zarr}, " + (f"OME-NGFF {image.version}" if image.version else "no OME metadata"),
        "Zarr axes": contents.axes + (" (stated)" if contents.stated else ""),
        "Zarr shape": times_text(array.shape),
        "chunks": times_text(array.chunks) + shards,
        "stored": f"{found} of {possible} {what}" + ("; the others have the fill value" if found < possible else ""),
        "compression": array.codecs,
    }
    if array.folder != image.group.folder:
        level = array.folder.relative_to(image.group.folder).as_posix()
        details["resolutions"] = f"{image.levels}, the full one ({level}) is read"
    if image.version and space.unit != "pixel":
        lengths = zip(space.axes, space.scale, space.units, strict=True)
        details["scale"] = ", ".join(f"{axis.lower()} {n:g} {unit}" for axis, n, unit in lengths)
    labels = [place.relative_to(image.group.folder).as_posix() for place in ngff.label_images(image.group)]
    if labels:
        details["label images"] = ", ".join(labels)
    details |= {key: said for key, said in (("pixel size", space.note), ("warning", image.warning)) if said}
    return details


def _fill(target: NDArray[Any], source: Any, contents: _Contents, path: Path) -> None:
    """Copy the kept axes, box by box of whole chunks."""
    kept = [contents.axes.index(axis) for axis in contents.kept]
    chunks = tuple(contents.array.chunks[n] for n in kept)
    for box in boxes(target.shape, chunks, target.itemsize):
        place = dict(zip(contents.kept, box, strict=True))
        with _chunk_errors_raised(path):
            decoded = source[tuple(place.get(axis, contents.frame if axis == "T" else 0) for axis in contents.axes)]
            if decoded.shape != target[box].shape:
                raise ValueError(f"a part of shape {decoded.shape}")
        copy_in_tiles(target[box], decoded)
        release(target)


def write(volume: Volume, path: Path, overwrite: bool = False, labels: bool = False) -> None:
    """Write a folder of compressed chunks with its pixel size; `labels` mark it as a label image.

    A volume that was read from OME-Zarr keeps version, order of axes, units, scale and translation; what comes from
    elsewhere becomes version 0.5 (Zarr 3). Channels come first. Images longer than `SMALL` get lower resolutions too,
    whose voxels are every second one of the level above, so that no label is invented. Orientation cannot be said in
    OME-Zarr and is lost, with the position of what is turned. A volume of one slice reads back as two-dimensional.

    Raises:
        OutputError: not writable, or a folder is in the way that is no Zarr.
        MissingExtra: zarr is not installed.
    """
    zarr = _library()
    check_free(path, overwrite)
    space = _space_for(volume)
    letters, array = ("CXYZ", volume.array) if volume.channels > 1 else ("XYZ", volume.array[0])
    axes = letters.removesuffix("XYZ") + space.axes
    array = array.transpose([letters.index(axis) for axis in axes])
    steps = list(reductions(array.shape[-volume.dimensions :], space))
    levels = [(str(number), step) for number, step in enumerate(steps)]
    attributes = ngff.described(_NAME.sub("", path.name), space, axes, levels)
    dtype = _type(volume.array, path)
    # zarr warns about codecs and types that its version 3 has not standardised yet
    with folder_written_aside(path, overwrite) as aside, warnings.catch_warnings(action="ignore"):
        marked = ngff.marked_as_labels(attributes) if labels else attributes
        group = zarr.create_group(aside, zarr_format=2 if space.version == "0.4" else 3, attributes=marked)
        write_levels(group, array, dtype, axes, levels)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse, by an OutputError, what exists where `overwrite` is false, and a folder that is no Zarr even then."""
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(f"{path}: exists already; choose another place, or say --overwrite to replace it")
    if path.is_dir() and not nodes.documents(path):
        raise OutputError(f"{path}: is a folder, but no Zarr, and is not replaced; choose another name")


def _space_for(volume: Volume) -> Space:
    """The source's own numbers where the grid is still its grid, else those of the volume."""
    source: Space | None = volume.origin.header if volume.origin and volume.origin.format == FORMAT else None
    axes = source.axes if source is not None and len(source.axes) == volume.dimensions else "ZYX"[-volume.dimensions :]
    version = "0.5" if source is None or source.version in ("", "0.5") else "0.4"
    same = source is not None and (source.axes, source.unit) == (axes, volume.unit)
    if source is not None and same and np.array_equal(source.affine, volume.affine):
        return replace(source, version=version)
    return Space.of(volume, axes, version)


def _type(array: NDArray[Any], path: Path) -> np.dtype[Any]:
    try:
        return stored_type(array, TYPES, path)
    except OutputError:
        return stored_type(array, WIDE_TYPES, path)


def _library() -> Any:
    """The module `zarr`; a MissingExtra where it is not installed."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra("OME-Zarr needs the library zarr; pip install 'medunet[zarr]'") from error
    return zarr


@contextmanager
def _chunk_errors_raised(path: Path) -> Iterator[None]:
    """Turn what zarr raises into an error of ours that names the scan, and what it warns of into nothing."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MedunetError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path}: a chunk is damaged or cannot be read ({reason}); make or copy it again") from error
