"""Voxel sizes that a data set declares for files that state none: PNG, JPEG, and TIFF without a resolution.

`dataset.json` says `"spacing": [0.2, 0.1, 0.1], "spacing_units": "um", "axes": "ZYX"`. A file keeps what it states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from medunet.errors import DataError
from medunet.formats.pixel_size import MICROMETRES
from medunet.volume import MILLIMETRES, Grid, Volume

SAME = 0.01
"""Relative difference up to which a file says what is declared: both are rounded."""

_NO_UNIT = frozenset({"", "pixel", "pixels", "px", "voxel", "voxels", "unknown", "none"})
_SPELLED = {"millimeters": "mm", "millimetres": "mm", "micrometers": "um", "micrometres": "um", "nanometers": "nm"}
Scan = TypeVar("Scan", Volume, Grid)


@dataclass(frozen=True)
class VoxelSize:
    """A size of voxels: x, y and, where it is known, z.

    Attributes:
        unit: `mm`, `um` or `nm`.
    """

    lengths: tuple[float, ...]
    unit: str

    def given_to(self, scan: Scan, where: str = "a scan") -> Scan:
        """The scan with this size if its file states none; otherwise the unchanged scan.

        Of a stack whose sections state their pixel size, the distance of sections is taken, which no section can state.
        A stack without a declared one has sections as far apart as pixels are high.

        Args:
            where: the file of a `Grid`, which does not know it, for messages.

        Raises:
            DataError: the scan is a volume, and only two lengths are declared.
        """
        affine = scan.affine.copy()
        if scan.unit == "pixel":
            affine = np.diag([*self._of(scan, where), 1.0])
            return replace(scan, affine=affine, unit=self.unit)
        if is_stack(scan) and self.deep:
            affine[2, 2] = self.lengths[2] * MILLIMETRES[self.unit] / MILLIMETRES[scan.unit]
            return replace(scan, affine=affine)
        return scan

    def completing(self, scan: Scan) -> Scan:
        """`given_to` of scans that state a part of their size, for comparing grids.

        What states nothing says nothing of its grid but its shape, and stays so: where it lies beside a scan that
        states its own size, this one is not its.
        """
        return scan if scan.unit == "pixel" else self.given_to(scan)

    @property
    def deep(self) -> bool:
        """True if z is known."""
        return len(self.lengths) == 3

    def _of(self, scan: Volume | Grid, where: str) -> tuple[float, float, float]:
        x, y, *deep = self.lengths
        if deep:
            return x, y, deep[0]
        if scan.dimensions == 3 and not is_stack(scan):
            raise DataError(
                f"{scan.name if isinstance(scan, Volume) else where}: is a volume without voxel size, and dataset.json "
                'declares a spacing of two numbers; declare three, with "axes": "ZYX" for their order'
            )
        return x, y, 1.0 if scan.dimensions == 2 else y

    def contradicts(self, grid: Grid) -> bool:
        """True if a file states a size that differs by more than `SAME`; along z only where both state it."""
        if grid.unit == "pixel":
            return False
        scale = MILLIMETRES[self.unit] / MILLIMETRES[grid.unit]
        count = 2 if grid.format == "stack" else min(grid.dimensions, len(self.lengths))
        pairs = zip(grid.spacing[:count], self.lengths[:count], strict=True)
        return any(abs(own / (scale * declared) - 1) > SAME for own, declared in pairs)

    def in_unit(self, unit: str, dimensions: int) -> tuple[float, ...]:
        """The lengths along the axes of a scan, in another unit; none is declared of z of a stack that takes y's."""
        scale = MILLIMETRES[self.unit] / MILLIMETRES[unit]
        lengths = self.lengths if len(self.lengths) >= dimensions else (*self.lengths, self.lengths[1])
        return tuple(float(f"{scale * length:.6g}") for length in lengths[:dimensions])

    def __str__(self) -> str:
        return f"{'×'.join(f'{length:g}' for length in self.lengths)} {self.unit}"


def is_stack(scan: Volume | Grid) -> bool:
    """True if a scan was read from a folder of sections, which cannot state how far apart they are."""
    return (scan.format if isinstance(scan, Grid) else scan.origin.format if scan.origin else "") == "stack"


def declared_size(declared: Mapping[str, Any], where: str) -> VoxelSize | None:
    """The voxel size in a `dataset.json`; None where it says nothing, or counts in pixels.

    `spacing` is one number for all axes, or two or three in the order of `axes` (letters of `X`, `Y`, `Z`; others are
    passed over) or, without it, x, y, z as `medunet inspect` prints them.

    Args:
        where: the file's name, for messages.

    Raises:
        DataError: numbers that are no lengths, no known unit, or three different numbers whose order is not said.
    """
    spacing, unit = declared.get("spacing"), declared.get("spacing_units")
    word = str("" if unit is None else unit).strip().lower()
    if spacing is None or (unit is not None and word in _NO_UNIT):
        return None
    numbers = [spacing] if isinstance(spacing, (int, float)) else spacing
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= 3 or not all(map(_is_length, numbers)):
        raise DataError(f'{where}: "spacing" must be one, two or three positive numbers, found {spacing!r}')
    word = _SPELLED.get(word, word)
    name = word if word in MILLIMETRES else "um"
    factor = 1.0 if name == word else MICROMETRES.get(word)
    if factor is None:
        raise DataError(
            f'{where}: declares "spacing" {spacing} with "spacing_units" {unit!r}; expected "mm", "um" or "nm"\n'
            'say which unit it is, or "pixel" if it is none'
        )
    lengths = _in_order(numbers, declared.get("axes"), where)
    return VoxelSize(tuple(factor * float(n) for n in lengths), name)


def _is_length(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < math.inf


def _in_order(numbers: Sequence[float], axes: Any, where: str) -> list[float]:
    """The numbers in the order x, y, z."""
    if len(numbers) == 1:
        return [*numbers] * 3
    if axes is None:
        if len(set(numbers)) > 1 and len(numbers) == 3:
            raise DataError(
                f'{where}: the order of "spacing" {numbers} is not said; '
                'add "axes": "ZYX" if the first number is the distance of slices, or "axes": "XYZ"'
            )
        return list(numbers)
    letters = [letter for letter in str(axes).upper() if letter in "XYZ"]
    if len(letters) > len(numbers) and "Z" in letters:
        letters.remove("Z")
    if sorted(letters) != list("XYZ"[: len(numbers)]):
        raise DataError(
            f'{where}: "spacing" {numbers} has {len(numbers)} numbers, which do not fit "axes" {axes!r}; '
            "give one for each of its letters X, Y, Z"
        )
    return [numbers[letters.index(letter)] for letter in "XYZ"[: len(numbers)]]
