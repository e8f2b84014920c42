"""DICOM series, read only.

pydicom for headers and voxels, not MONAI: its PydicomReader stacks by InstanceNumber (skipping slices that have none)
and takes the slice distance from z alone, its ITKReader silently takes one of several series and accepts missing,
doubled and truncated slices. Nothing that names a patient leaves this module.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from medunet.errors import DataError
from medunet.system.blocks import Empty, blocks
from medunet.volume import Grid, Origin, Volume

UNEVEN = 1e-2
"""Slice distances may differ by this part of the step, and drift sideways by it: rounding of headers, not geometry."""

_NEEDED = (
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class _Slice:
    path: Path
    header: Any
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    """``(2, 3)``: the direction of growing column index, then of growing row index, in LPS."""
    slope: float
    intercept: float


@dataclass(frozen=True)
class _Series:
    """Checked slices in the order of their position along the normal."""

    slices: tuple[_Slice, ...]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        header = self.slices[0].header
        return int(header.Columns), int(header.Rows), len(self.slices)


def is_dicom(path: Path) -> bool:
    """True if a file carries DICOM's magic number (``DICM`` after 128 bytes)."""
    try:
        with path.open("rb") as handle:
            handle.seek(128)
            return handle.read(4) == b"DICM"
    except OSError:
        return False


def files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, without DICOMDIR, whose references could point anywhere."""
    found = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if path.name.upper() != "DICOMDIR" and is_dicom(path))


def read(folder: Path, empty: Empty = np.empty) -> Volume:
    """Read one series as ``(1, x, y, z)`` in millimetres, RAS+; z grows along the normal of the slices.

    The order and the slice step come from the positions, never from file names, InstanceNumber or SliceThickness
    (the thickness counts only where there is a single slice). Rescale slope and intercept are applied: whole numbers
    stay integers, others become float32.

    Raises:
        DataError: several series, unequal or multi-frame slices, missing or doubled positions, gantry tilt, missing
            geometry, colour, a compression without decoder, or damaged pixels.
    """
    series = _series(folder)
    planes = empty(series.shape[::-1], series.dtype)
    slices = iter(series.slices)
    for block in blocks(planes, whole=2):
        for plane in block:
            plane[...] = _pixels(next(slices))
    return Volume(planes.T[np.newaxis], series.affine, "mm", Origin(folder, "dicom"))


def look(folder: Path) -> Grid:
    """The grid from the headers of all slices.

    Raises:
        DataError: as `read`, but for damaged pixels.
    """
    series = _series(folder)
    first = series.slices[0].header
    details = {
        "DICOM modality": str(first.get("Modality", "unknown")),
        "slices": str(len(series.slices)),
        "transfer syntax": str(first.file_meta.TransferSyntaxUID.name),
        "photometric": str(first.PhotometricInterpretation),
    }
    if not first.get("SeriesInstanceUID"):
        details["warning"] = "the files name no series; they were taken together by their geometry"
    return Grid(series.shape, 1, series.affine, "mm", str(series.dtype), "dicom", details)


def _series(folder: Path) -> _Series:
    headers = [(path, _header(path)) for path in files(folder)]
    _check_one_series(folder, [header for _, header in headers])
    slices = [_slice(path, header) for path, header in headers]
    _check_equal(folder, slices)
    normal = np.cross(*slices[0].axes)
    slices.sort(key=lambda one: float(one.position @ normal))
    step = _step(folder, slices, normal)
    header = slices[0].header
    row_distance, column_distance = (float(d) for d in header.PixelSpacing)
    lps = np.eye(4)
    lps[:3, 0] = slices[0].axes[0] * column_distance
    lps[:3, 1] = slices[0].axes[1] * row_distance
    lps[:3, 2] = step
    lps[:3, 3] = slices[0].position
    return _Series(tuple(slices), _LPS_TO_RAS @ lps, _dtype(slices))


def _header(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote header values, and with them names
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_NEEDED))
            header.decode()
    except (InvalidDicomError, EOFError, OSError, ValueError, TypeError, AttributeError, KeyError):
        # the cause is cut off on purpose: it can quote the header, and with it a patient's name
        raise DataError(f"{path}: damaged or truncated DICOM header; copy it again") from None
    # Some tools empty the name of a series when they take out what identifies a patient; the geometry decides then.
    if "SeriesInstanceUID" not in header:
        raise DataError(f"{path}: damaged or truncated DICOM header: it names no series; copy it again")
    return header


def _check_one_series(folder: Path, headers: Sequence[Any]) -> None:
    series = Counter((str(h.get("SeriesInstanceUID")), h.get("SeriesNumber"), h.get("Modality")) for h in headers)
    if len(series) > 1:
        found = ", ".join(
            f"series {number if number is not None else '?'} ({modality or '?'}, …{uid[-12:]}): {count} files"
            for (uid, number, modality), count in sorted(series.items(), key=str)[:6]
        )
        raise DataError(
            f"{folder}: holds {len(series)} DICOM series; expected one\n{found}\n"
            "put each series into a folder of its own"
        )


def _slice(path: Path, header: Any) -> _Slice:
    """One slice's numbers; what is missing or not supported is an error that says so."""
    for name in ("Rows", "Columns", "BitsAllocated", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        if header.get(name) in (None, ""):
            if int(header.get("NumberOfFrames") or 1) > 1:
                name = "one frame (this is a multi-frame file; convert it, for example with dcm2niix)"
            raise DataError(f"{path}: this DICOM file lacks {name}, without which voxels have no position")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise DataError(
            f"{path}: multi-frame DICOM; expected one slice per file, convert it (for example with dcm2niix)"
        )
    if int(header.get("SamplesPerPixel") or 1) != 1 or "ModalityLUTSequence" in header:
        what = "colour DICOM" if int(header.get("SamplesPerPixel") or 1) != 1 else "DICOM with a modality lookup table"
        raise DataError(f"{path}: {what} is not supported; convert it (for example with dcm2niix)")
    _check_decoder(path, header)
    try:
        axes = np.asarray(header.ImageOrientationPatient, np.float64).reshape(2, 3)
        position = np.asarray(header.ImagePositionPatient, np.float64).reshape(3)
        spacing = np.asarray(header.PixelSpacing, np.float64).reshape(2)
        slope = float(1 if header.get("RescaleSlope") is None else header.RescaleSlope)
        intercept = float(header.get("RescaleIntercept") or 0)
    except (ValueError, TypeError):
        raise DataError(f"{path}: its DICOM geometry or rescaling are not numbers; export the series again") from None
    if not np.isfinite([*axes.flat, *position, *spacing, slope, intercept]).all() or spacing.min() <= 0:
        raise DataError(f"{path}: DICOM PixelSpacing {spacing.tolist()} or its position is not usable; export it again")
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise DataError(f"{path}: DICOM row and column directions are not perpendicular unit vectors: {axes.tolist()}")
    return _Slice(path, header, position, axes, slope, intercept)


def _check_decoder(path: Path, header: Any) -> None:
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{path}: this DICOM file lacks its transfer syntax; export it again")
    try:
        plain = not syntax.is_compressed or syntax.is_deflated
    except ValueError as error:  # pydicom does not know it
        raise DataError(
            f"{path}: unknown DICOM transfer syntax {syntax}, so its pixels cannot be read\n"
            "export it again as Explicit VR Little Endian, or convert it (for example with gdcmconv --raw)"
        ) from error
    if plain:
        return
    try:
        available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(
            f"{path}: compressed as {syntax.name}, for which no decoder is installed\n"
            "install pylibjpeg, pylibjpeg-libjpeg and pylibjpeg-openjpeg, or decompress it (for example with gdcmconv)"
        )


def _check_equal(folder: Path, slices: Sequence[_Slice]) -> None:
    """Refuse slices that differ in anything that one array and one affine say once."""
    first = slices[0]
    for one in slices[1:]:
        for name in ("Rows", "Columns", "BitsAllocated", "PixelRepresentation"):
            mine, other = one.header.get(name), first.header.get(name)
            if mine != other:
                raise DataError(
                    f"{folder}: slices differ: {name} is {other} in {first.path.name} and {mine} in {one.path.name}\n"
                    "put slices of one size into a folder of their own"
                )
        spacing, other = [np.asarray(s.header.PixelSpacing, np.float64) for s in (one, first)]
        if not np.allclose(spacing, other, rtol=1e-4) or not np.allclose(one.axes, first.axes, atol=1e-3):
            raise DataError(
                f"{folder}: slices differ: PixelSpacing or direction of {one.path.name} is not that of "
                f"{first.path.name}\nput slices of one direction into a folder of their own"
            )


def _step(folder: Path, slices: Sequence[_Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector from one slice to the next, in LPS millimetres; checked to be even and along the normal."""
    if len(slices) == 1:
        thickness = slices[0].header.get("SpacingBetweenSlices") or slices[0].header.get("SliceThickness")
        if not thickness or float(thickness) <= 0:
            raise DataError(
                f"{folder}: a single DICOM slice without SliceThickness; a volume needs at least two slices"
            )
        return normal * float(thickness)
    positions = np.array([one.position for one in slices])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() < UNEVEN * max(usual, 1e-3):
        twice = int(np.argmin(gaps))
        raise DataError(
            f"{folder}: {slices[twice].path.name} and {slices[twice + 1].path.name} lie at the same place; "
            "expected one slice per position\nput each time point, echo or reconstruction into a folder of its own"
        )
    uneven = np.flatnonzero(np.abs(gaps - usual) > UNEVEN * usual)
    if len(uneven):
        gap = int(uneven[0])
        raise DataError(
            f"{folder}: {gaps[gap]:.4g} mm between {slices[gap].path.name} and {slices[gap + 1].path.name}, but "
            f"{usual:.4g} mm elsewhere: slices are missing or unevenly spaced\nexport the whole series again"
        )
    _check_straight(folder, positions, normal)
    return np.asarray((positions[-1] - positions[0]) / (len(slices) - 1))


def _check_straight(folder: Path, positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Refuse a stack that leans (gantry tilt) or in which single slices are displaced."""
    along = positions @ normal
    sideways = positions - np.outer(along, normal)
    sideways = np.linalg.norm(sideways - sideways[0], axis=1)
    allowed = UNEVEN * (along - along[0] + (along[1] - along[0]))
    worst = int(np.argmax(sideways - allowed))
    if sideways[worst] > allowed[worst]:
        raise DataError(
            f"{folder}: the slices are not stacked along their normal: slice {worst} is displaced sideways by "
            f"{sideways[worst]:.4g} mm (gantry tilt?)\n"
            "convert the series with a tool that corrects it, such as dcm2niix"
        )


def _dtype(slices: Sequence[_Slice]) -> np.dtype[Any]:
    """The type that holds every rescaled value: integers for whole slopes and intercepts, else float32."""
    header = slices[0].header
    signed = int(header.get("PixelRepresentation") or 0) == 1
    stored = np.dtype(f"{'int' if signed else 'uint'}{int(header.BitsAllocated)}")
    if all(one.slope == 1 and one.intercept == 0 for one in slices):
        return stored
    if not all(one.slope.is_integer() and one.intercept.is_integer() for one in slices):
        return np.dtype(np.float32)
    bits = max(int(one.header.get("BitsStored") or header.BitsAllocated) for one in slices)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    reached = [one.slope * end + one.intercept for one in slices for end in ends]
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= min(reached) and max(reached) <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def _pixels(one: _Slice) -> NDArray[Any]:
    """One slice ``(row, column)``, rescaled; pydicom has cleared bits beyond BitsStored, where old overlays lie."""
    try:
        with warnings.catch_warnings(action="ignore"):
            pixels = pydicom.dcmread(one.path).pixel_array
    except (EOFError, OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, NotImplementedError):
        raise DataError(f"{one.path}: truncated or damaged DICOM pixels; copy it again") from None
    if pixels.shape != (one.header.Rows, one.header.Columns):
        raise DataError(f"{one.path}: pixels of shape {pixels.shape}, but the header says {one.header.Rows} rows")
    if one.slope == 1 and one.intercept == 0:
        return np.asarray(pixels)
    return np.asarray(pixels.astype(np.float64) * one.slope + one.intercept)
