"""A scan or a label map together with the grid it lives on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError
from medunet.geometry.grids import grid_distance

if TYPE_CHECKING:
    from monai.data import MetaTensor

UNITS = ("mm", "um", "nm", "pixel")
MILLIMETRES = {"mm": 1.0, "um": 1e-3, "nm": 1e-6}
"""How many millimetres one unit is; ``pixel`` has no physical size."""


@dataclass(frozen=True)
class Origin:
    """The source of a volume, and what its format needs to write another array on the same grid.

    Attributes:
        format: the family that read it: ``nifti``, ``itk``, ``dicom``, ``tiff``, ``zarr``, ``picture``;
            ``memory`` for an array that was changed since, of which only the name is known.
        header: that family's own record (a nibabel header, TIFF axes and resolution, …); opaque to everybody else.
    """

    path: Path
    format: str
    header: Any = None


@dataclass(frozen=True)
class Volume:
    """An array on a grid.

    Attributes:
        array: ``(channel, x, y, z)`` or ``(channel, x, y)``; a label map has one channel.
        affine: ``(4, 4)`` float64, voxel index to physical position in `unit`, RAS+ for medical scans;
            two-dimensional volumes keep their unused third axis.
        unit: ``mm``, ``um``, ``nm`` or ``pixel`` (unknown physical size, spacing 1).
        origin: the file it came from, or None for an array made in memory.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    unit: str = "mm"
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4):
            raise DataError(
                f"{self.name}: an array of shape {self.array.shape} is no volume; "
                "expected (channel, x, y) or (channel, x, y, z)"
            )
        if 0 in self.array.shape or self.array.dtype.kind not in "buif":
            raise DataError(
                f"{self.name}: expected real numbers and at least one voxel, "
                f"found {self.array.dtype} of shape {self.array.shape}"
            )
        if self.unit not in UNITS:
            raise DataError(f"{self.name}: the unit is one of {', '.join(UNITS)}, found {self.unit!r}")
        check_affine(self.affine, self.name)

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.origin.path.name if self.origin else "array"

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return self.array.ndim - 1

    @property
    def channels(self) -> int:
        return int(self.array.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial shape, without channels."""
        return tuple(int(n) for n in self.array.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each spatial axis, in `unit`."""
        return spacing_of(self.affine, self.dimensions)

    def with_array(self, array: NDArray[Any]) -> Volume:
        """Another array ``(channel, *spatial)`` on this very grid.

        Raises:
            DataError: the spatial shape differs.
        """
        if tuple(array.shape[1:]) != self.shape:
            raise DataError(f"{self.name}: shape {tuple(array.shape[1:])} does not fit the grid {self.shape}")
        return replace(self, array=array)

    def to_metatensor(self) -> MetaTensor:
        """MONAI's form of this volume: `(channel, *spatial)` with the affine, the unit and the file in its `meta`.

        The array's memory is shared where torch has its type: unsigned integers above 8 bits become signed ones of
        twice the size. The affine stays in `unit`, which MONAI takes for millimetres.
        """
        import torch
        from monai.data import MetaTensor

        wider = {"u2": np.int32, "u4": np.int64, "u8": np.int64}.get(self.array.dtype.str[1:])
        array = self.array.astype(wider or self.array.dtype.newbyteorder("="), copy=False)
        array = array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()
        return MetaTensor(torch.from_numpy(array), meta=self.meta())

    def meta(self) -> dict[str, Any]:
        """What MONAI keeps of a file, as plain data that its loaders can collate: strings and arrays.

        `affine`, `original_affine`, `spatial_shape`, `space`, `filename_or_obj` as MONAI's readers give them; `unit`
        besides, and `qform_code` and `sform_code` of NIfTI.
        """
        meta = {
            "affine": self.affine.copy(),
            "original_affine": self.affine.copy(),
            "spatial_shape": np.array(self.shape),
            "space": "RAS",
            "unit": self.unit,
        }
        if self.origin is None:
            return meta
        meta["filename_or_obj"] = str(self.origin.path)
        if self.origin.format == "nifti" and self.origin.header is not None:
            meta |= {code: int(self.origin.header[code]) for code in ("qform_code", "sform_code")}
        return meta

    @staticmethod
    def from_metatensor(tensor: MetaTensor) -> Volume:
        """The volume that one of MONAI's tensors `(channel, *spatial)` is; it shares the tensor's memory on a CPU.

        The unit is the one that `to_metatensor` and `medunet.monai.LoadScan` note, else millimetres. A plain tensor has
        an affine of its own no more than an array has.

        Raises:
            DataError: no volume, such as a batch or a tensor without channels.
        """
        import torch

        meta = getattr(tensor, "meta", {})
        array = tensor.detach().as_subclass(torch.Tensor).cpu().numpy()
        stated = np.asarray(getattr(tensor, "affine", np.eye(4)), np.float64)
        if stated.ndim != 2:
            raise DataError(f"found a tensor of shape {array.shape} with several affines; decollate the batch first")
        affine, n = np.eye(4), len(stated) - 1
        affine[:n, :n], affine[:n, 3] = stated[:n, :n], stated[:n, n]
        file = meta.get("filename_or_obj")
        origin = Origin(Path(file), "memory") if isinstance(file, str) and file else None
        return Volume(array, affine, str(meta.get("unit", "mm")), origin)


@dataclass(frozen=True, eq=False)
class Grid:
    """A file's header without its voxels; agrees with the `Volume` that the file is read as.

    Attributes:
        shape: spatial, ``(x, y, z)`` or ``(x, y)``.
        affine: ``(4, 4)`` float64, as in `Volume`.
        dtype: numpy name of the array's type, after a scaling the header asks for.
        format: ``nifti``, ``itk``, ``dicom``, ``tiff``, ``zarr`` or ``picture``.
        details: further lines for a reader, such as ``{"TIFF axes": "ZYX"}``; never anything about a patient.
        channel_names: as the file has them; empty if it has none.
    """

    shape: tuple[int, ...]
    channels: int
    affine: NDArray[np.float64]
    unit: str
    dtype: str
    format: str
    details: dict[str, str] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each spatial axis, in `unit`."""
        return spacing_of(self.affine, self.dimensions)


def spacing_of(affine: NDArray[np.float64], dimensions: int) -> tuple[float, ...]:
    """Lengths of the affine's first `dimensions` columns, in its unit."""
    return tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)[:dimensions])


def check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Refuse a matrix that gives voxels no position.

    The test for singularity does not depend on the unit: 4 nm in millimetres are as good as 4 mm.

    Raises:
        DataError: not a finite ``(4, 4)`` matrix, or singular.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(f"{name}: the affine must be a finite 4x4 matrix, found {affine.tolist()}")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise DataError(f"{name}: the affine is singular, so voxels have no position: {affine.tolist()}")


GRID_TOLERANCE = 1e-3
"""The distance that corresponding corners of two scans may lie apart, in the unit of the first."""
VOXEL_TOLERANCE = 0.1
"""The same in voxels, for grids so fine that a thousandth of their unit is a voxel: microscopy in millimetres."""


def tolerance(first: Volume | Grid) -> float:
    """The distance that corresponding corners of two scans may lie apart, in the first scan's unit."""
    return min(GRID_TOLERANCE, VOXEL_TOLERANCE * min(first.spacing))


def corners_apart(first: Volume | Grid, second: Volume | Grid) -> float:
    """The largest distance between corresponding corners of two scans of one shape, in the first's unit.

    0 where one states no voxel size, as a mask in PNG beside a TIFF: it says nothing of its grid but the shape.
    """
    if "pixel" in (first.unit, second.unit):
        return 0.0
    affine = second.affine.copy()
    affine[:3] *= MILLIMETRES[second.unit] / MILLIMETRES[first.unit]
    return grid_distance(first.shape, first.affine, affine)


def spacing_text(scan: Volume | Grid) -> str:
    """Such as `(0.5, 0.5, 2) um`, for messages."""
    return f"({', '.join(f'{length:.4g}' for length in scan.spacing)}) {scan.unit}"
