"""Reading and writing scans and label maps: one module per family of formats, chosen by the file's suffix.

The grid survives: what is read knows where its voxels are, and what is written beside it lies on the same grid.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medunet.errors import DataError, OutputError
from medunet.formats.omezarr.nodes import SUFFIXES as ZARR_SUFFIXES
from medunet.formats.omezarr.nodes import enclosing, is_zarr
from medunet.system.files import check_free
from medunet.system.scratch import Scratch
from medunet.volume import Grid, Volume

_FAMILIES = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".hdr": "nifti",
    ".img": "nifti",
    ".nrrd": "itk",
    ".nhdr": "itk",
    ".mha": "itk",
    ".mhd": "itk",
    ".ome.tif": "tiff",
    ".ome.tiff": "tiff",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".ome.zarr": "omezarr.read_write",
    ".zarr": "omezarr.read_write",
}

_BY_AXES = ("tiff", "omezarr.read_write")
"""Families whose files may leave their axes unsaid, or hold several time points, and that colour or mark labels."""

READABLE = tuple(suffix for suffix in _FAMILIES if suffix != ".img")
"""Suffixes of scans, which are files but for ``.zarr``, a folder.

A pair ``.hdr``/``.img`` is listed once, under ``.hdr``, but either name reads.
"""

WRITABLE = tuple(suffix for suffix in READABLE if suffix not in (".jpg", ".jpeg"))

_NOT_OF_LABELS = frozenset("CST")
"""Axes of channels, colours and time points."""


def read_volume(
    path: Path | str, *, axes: str | None = None, frame: int | None = None, scratch: Scratch | None = None
) -> Volume:
    """Read a scan or a label map: a file, or a folder that is OME-Zarr, one DICOM series or a stack of pictures.

    Args:
        axes: states the axes of a TIFF or a Zarr array, slowest first, such as ``ZYX``; other formats know theirs and
            ignore it.
        frame: the time point of a TIFF or an OME-Zarr that is read, counted from 1; a scan without time has none.
        scratch: holds the array if it is large; memory then does not grow with the scan, except for pictures, NRRD
            and MetaImage written as text, and single TIFF pages, DICOM slices and Zarr chunks, which are decoded as a
            whole.

    Returns:
        ``(channel, x, y)`` or ``(channel, x, y, z)`` in the type on disk (float32 where the file asks for a scaling),
        with its affine, unit and origin.

    Raises:
        DataError: missing, empty, damaged, ambiguous, or of a format that is not read.
        MissingExtra: an OME-Zarr without the library for it.
        OutputError: `scratch` has no room.
    """
    path = Path(path)
    family = _family(path)
    volume: Volume = family.read(path, empty=scratch or np.empty, **_choices(family, path, axes, frame))
    return volume


def _choices(family: ModuleType, path: Path, axes: str | None, frame: int | None) -> dict[str, Any]:
    """The arguments by which a family that leaves axes unsaid is read; empty for others, which have no frames."""
    if family.__name__.removeprefix("medunet.formats.") in _BY_AXES:
        return {"axes": axes, "frame": frame}
    if frame is not None:
        raise DataError(f"{path}: --frame {frame}: only TIFF and OME-Zarr are read by time points; leave --frame out")
    return {}


def read_grid(path: Path | str, *, axes: str | None = None, frame: int | None = None) -> Grid:
    """Shape, position and type from a file's header, without reading voxels; agrees with `read_volume`.

    Raises:
        DataError, MissingExtra: as `read_volume`, as far as a header can tell.
    """
    path = Path(path)
    family = _family(path)
    grid: Grid = family.look(path, **_choices(family, path, axes, frame))
    return grid


def label_axes(path: Path | str, axes: str | None) -> str | None:
    """The axes to state of a label map whose images have the stated `axes`.

    A label map has no channels and no time points, so what images need (`CYX`) may not fit it. Its own are taken where
    it names them (None), else those of the images without C, S and T where they fit.
    """
    if axes is None or not set(axes.upper()) & _NOT_OF_LABELS:
        return axes
    for stated in (None, "".join(letter for letter in axes if letter.upper() not in _NOT_OF_LABELS)):
        with suppress(DataError):
            read_grid(path, axes=stated)
            return stated
    return axes


def files_of(path: Path | str) -> list[Path]:
    """All files that `read_volume` takes bytes from: the voxel file beside a header, a DICOM series' slices, chunks.

    Raises:
        DataError: missing, or a header that names a file that is.
    """
    path = Path(path)
    family = _family(path)
    return family.files(path) if hasattr(family, "files") else [path]


def write_volume(volume: Volume, path: Path | str, *, overwrite: bool = False, labels: bool = False) -> None:
    """Write a volume, whole or not at all; the suffix picks the format.

    A volume whose origin is of the same family keeps that header, so a label map written for a scan has exactly the
    scan's grid. Integers stay integers, in their type or the smallest that fits and that the format has; several
    channels (probabilities) go to NIfTI, NRRD, MetaImage, TIFF and OME-Zarr. An array that lives in a file is written
    part by part (but to PNG); where its memory runs across the file's order, the target's folder holds a copy
    meanwhile (but of OME-Zarr).

    Args:
        labels: the volume is a label map: as an ImageJ TIFF it gets a lookup table that gives every label a colour,
            as OME-Zarr the mark of a label image.

    Raises:
        OutputError: the file exists and `overwrite` is false, the suffix is not writable, the format cannot hold the
            array, or the disk refuses.
        MissingExtra: OME-Zarr without the library for it.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix not in _FAMILIES:
        raise OutputError(f"{path}: cannot write {suffix or 'a file without suffix'}; choose one of {_list(WRITABLE)}")
    family = _FAMILIES[suffix]
    _module(family).write(volume, path, overwrite, *([labels] if family in _BY_AXES else []))


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse to replace what is there unasked, before any work.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or is a folder that this format does not replace.
    """
    if suffix_of(path) in ZARR_SUFFIXES:
        _module("omezarr.read_write").check_free(path, overwrite)
    else:
        check_free(path, overwrite)


def suffix_of(path: Path | str) -> str:
    """The suffix in lower case, ``.nii.gz`` and ``.ome.tif`` whole; empty where there is none."""
    name = Path(path).name.lower()
    known = (suffix for suffix in _FAMILIES if name.endswith(suffix) and name != suffix)
    return max(known, key=len, default=Path(name).suffix)


def case_stem(path: Path | str) -> str:
    """The name without its suffix; a folder (a DICOM series) keeps all of its name.

    A link is called as it is, whatever it leads to. What lies inside an OME-Zarr is named after all of its path:
    ``plate_A_1_0`` for ``plate.zarr/A/1/0``.
    """
    path = Path(path)
    if path.is_dir() and (outer := enclosing(path)) not in (None, path.absolute()):
        return "_".join((case_stem(outer), *path.absolute().relative_to(outer).parts))
    if path.is_dir() and suffix_of(path) not in ZARR_SUFFIXES:
        return Path(os.path.abspath(path)).name  # noqa: PTH100 - `.` has a name so, and a link keeps its own
    return path.name[: len(path.name) - len(suffix_of(path))]


def is_readable(path: Path | str) -> bool:
    """True for a visible file with a readable suffix, or a visible folder that is OME-Zarr or a DICOM series.

    Of a pair ``.hdr``/``.img`` only the ``.hdr`` counts, so that a folder's listing has each scan once.
    """
    path = Path(path)
    if path.name.startswith("."):
        return False
    return is_folder_scan(path) if path.is_dir() else path.is_file() and suffix_of(path) in READABLE


def is_folder_scan(folder: Path | str) -> bool:
    """True if a folder is itself a scan: OME-Zarr (or any Zarr), or a DICOM series."""
    return is_zarr(Path(folder)) or is_dicom_series(folder)


def is_dicom_series(folder: Path | str) -> bool:
    """True if a folder holds DICOM files (by their magic number, not their names) and no scans of other formats."""
    folder = Path(folder)
    if not folder.is_dir() or is_zarr(folder):  # whose chunks may be a million files
        return False
    return bool(_module("dicom").files(folder)) and not _scans(folder)


def stack_files(folder: Path | str) -> list[Path]:
    """The pictures in a folder that are the sections of a stack, in their order; all its scans must be of one kind.

    Empty for anything else, such as a DICOM series or a folder of mixed scans.
    """
    folder = Path(folder)
    if not folder.is_dir() or is_zarr(folder) or _module("dicom").files(folder):
        return []
    kinds = {suffix_of(path) for path in folder.iterdir() if suffix_of(path) in READABLE and path.name[:1] != "."}
    return _module("stack").files(folder) if len(kinds) == 1 else []


def default_suffix(volume: Volume) -> str:
    """The suffix an output made for this volume gets: its input's, where that can be written.

    ``.zarr`` for all that lies in one; ``.nii.gz`` for DICOM and for arrays made in memory, ``.png`` for pictures, or
    ``.tif`` where the array is nothing a PNG can hold; ``.tif`` for stacks.
    """
    suffix = suffix_of(volume.origin.path) if volume.origin else ""
    family = volume.origin.format if volume.origin else ""
    if volume.origin and family == "zarr":
        outer = enclosing(volume.origin.path)
        return suffix_of(outer) if outer else ".zarr"
    if family == "stack":
        return ".tif"
    if family == "picture":
        fits = volume.array.dtype.kind in "bui" and volume.channels in (1, 3)
        return ".png" if fits else ".tif"
    return suffix if suffix in WRITABLE else ".nii.gz"


def _family(path: Path) -> ModuleType:
    """The module that reads this file or folder."""
    if path.is_dir():
        return _module("omezarr.read_write") if is_zarr(path) else _folder_family(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the name")
    suffix = suffix_of(path)
    if suffix == ".dcm" or (suffix not in _FAMILIES and path.is_file() and _module("dicom").is_dicom(path)):
        raise DataError(f"{path}: one file of a DICOM series; give the folder that holds the whole series")
    if suffix not in _FAMILIES:
        raise DataError(f"{path}: cannot read {suffix or 'a file without suffix'}; expected one of {_list(READABLE)}")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes); copy it again")
    if suffix in ZARR_SUFFIXES:
        raise DataError(f"{path}: is a file, but Zarr is a folder; unpack it, or copy the whole folder")
    return _module(_FAMILIES[suffix])


def _folder_family(folder: Path) -> ModuleType:
    dicom = _module("dicom")
    if not dicom.files(folder):
        if stack_files(folder):
            return _module("stack")
        raise DataError(
            f"{folder}: a folder without DICOM files; give a file, or the folder of an OME-Zarr, of one DICOM "
            "series, or of the PNG, JPEG or TIFF sections of one stack"
        )
    if scans := _scans(folder):
        raise DataError(f"{folder}: holds DICOM files and other scans ({scans[0].name}); give each a folder of its own")
    return dicom


def _scans(folder: Path) -> list[Path]:
    """Files in a folder whose suffix says that they are scans; PNG and JPEG beside DICOM files are previews."""
    suffixes = [suffix for suffix in READABLE if _FAMILIES[suffix] != "picture"]
    return [path for path in sorted(folder.iterdir()) if suffix_of(path) in suffixes and not path.name.startswith(".")]


def _module(family: str) -> ModuleType:
    """A family's module, imported when first needed: itk, pydicom and tifffile would slow every command down."""
    return import_module(f"medunet.formats.{family}")


def _list(suffixes: tuple[str, ...]) -> str:
    return ", ".join(suffixes) + (", or the folder of a DICOM series" if suffixes is READABLE else "")
