"""Whether two scans of one shape lie on one grid, as far as their files say."""

from __future__ import annotations

from medunet.data.volume import MILLIMETRES, Grid, Volume
from medunet.geometry.grids import grid_distance

GRID_TOLERANCE = 1e-3
"""How far corresponding corners of two scans may lie apart, in the unit of the first."""
VOXEL_TOLERANCE = 0.1
"""The same in voxels, for grids so fine that a thousandth of their unit is a voxel: microscopy in millimetres."""


def tolerance(first: Volume | Grid) -> float:
    """How far corresponding corners of a scan and another one may lie apart, in the scan's unit."""
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
