"""A folder of equally large sections, PNG, JPEG or TIFF, as one volume: how electron microscopes' stacks are kept.

Sections are ordered as people count: `slice_2` before `slice_10`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError
from medunet.formats import picture, tiff
from medunet.system.blocks import Empty
from medunet.system.wording import times_text
from medunet.volume import Grid, Origin, Volume

_READERS = {".png": picture, ".jpg": picture, ".jpeg": picture, ".tif": tiff, ".tiff": tiff}


def files(folder: Path) -> list[Path]:
    """The sections in their order; hidden files and those of other kinds are none."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in _READERS and not path.name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: (_natural(path.name), path.name))


def read(folder: Path, empty: Empty = np.empty) -> Volume:
    """Read all sections as ``(channel, x, y, z)``; z is the section.

    The pixel size is that of the first section, if it has one; the distance of sections is not said by such files and
    taken as the pixel height.

    Raises:
        DataError: fewer than two sections, numbers that leave some out, or sections of different size, channels or
            type.
    """
    paths, grid = _checked(folder)
    # in memory as in a file: one section after the other
    array = empty((len(paths), grid.channels, *grid.shape[1::-1]), np.dtype(grid.dtype)).transpose(1, 3, 2, 0)
    for z, path in enumerate(paths):
        array[..., z] = _READERS[path.suffix.lower()].read(path).array
    return Volume(array, grid.affine, grid.unit, Origin(folder, "stack"))


def look(folder: Path) -> Grid:
    """The grid from the sections' headers; the errors are those of `read`."""
    return _checked(folder)[1]


def _checked(folder: Path) -> tuple[list[Path], Grid]:
    paths = files(folder)
    if len(paths) < 2:
        raise DataError(f"{folder}: holds {len(paths)} section(s); a stack needs two or more PNG, JPEG or TIFF files")
    _check_numbers(folder, paths)
    grids = [_READERS[path.suffix.lower()].look(path) for path in paths]
    first = grids[0]
    for path, grid in zip(paths, grids, strict=True):
        if grid.dimensions != 2:
            raise DataError(f"{path}: is a volume of shape {grid.shape}; the sections of a stack are pictures")
        if _described(grid) != _described(first):
            raise DataError(
                f"{path}: has {_described(grid)}, but {paths[0].name} {_described(first)}\n"
                "the sections of a stack need one size, number of channels and type; crop or convert the odd ones"
            )
    details = {"stack": f"{len(paths)} sections, {paths[0].name} to {paths[-1].name}"}
    affine: NDArray[np.float64] = first.affine.copy()
    if first.unit != "pixel":
        affine[2, 2] = affine[1, 1]
        details["pixel size"] = "distance of sections not said; taken as the pixel height"
    shape = (*first.shape, len(paths))
    return paths, replace(first, shape=shape, affine=affine, format="stack", details=first.details | details)


def _described(grid: Grid) -> str:
    return f"{times_text(grid.shape)} pixels, {grid.channels} channel(s) of {grid.dtype}"


def _check_numbers(folder: Path, paths: list[Path]) -> None:
    """Refuse numbered sections that do not follow in equal steps: a stack with a section lost is a wrong volume."""
    numbers = [int(found[-1]) for path in paths if (found := re.findall(r"\d+", path.stem))]
    if len(numbers) < len(paths):
        return
    steps = [after - before for before, after in pairwise(numbers)]
    usual = max(set(steps), key=steps.count)
    odd = next((index for index, step in enumerate(steps) if step != usual), None)
    if usual <= 0 or odd is not None:
        at = odd or 0
        raise DataError(
            f"{folder}: its sections are not numbered in equal steps: {paths[at].name} is followed by "
            f"{paths[at + 1].name}\ngive all sections of one stack, or number them anew"
        )


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Digits compare as numbers, before letters."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name) if part]
