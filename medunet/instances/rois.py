"""Outlines of labelled objects as an ImageJ ROI set: the ``.zip`` that Fiji's ROI Manager opens.

An outline runs along the edges of pixels, as that of ImageJ's wand does: pixel (x, y) is the square from (x, y) to
(x + 1, y + 1), and the pixels whose centres lie inside by the even-odd rule, which is ImageJ's, are exactly the
object's. Nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from roifile import ROI_TYPE, ImagejRoi, roiwrite
from scipy.ndimage import find_objects

from medunet.errors import DataError, OutputError
from medunet.system.files import written_aside

FARTHEST = 60535
"""The largest coordinate that ImageJ reads from a ROI file, whose integers have 16 bits."""

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0


def write_rois(path: Path, ids: NDArray[Any], ignore: int | None = None, overwrite: bool = False) -> None:
    """Write one ROI for each object and slice, whole or not at all.

    ROIs are named after the object, ``42``, in a stack with its slice, ``42_z007``, counted from 1 as ImageJ does; they
    carry that slice as their position. The order is by slice, then by id. Without objects the archive is empty.

    Args:
        ids: ``(x, y)`` or ``(x, y, z)`` whole numbers, 0 is background.
        ignore: the value of voxels that nobody annotated, which are no object.

    Raises:
        DataError: `ids` is no such array.
        OutputError: the file exists and `overwrite` is false, it cannot be written, or the image is larger than ROI
            files can say.
    """
    if max(ids.shape[:2], default=0) > FARTHEST:
        raise OutputError(
            f"{path}: ImageJ's ROI files hold positions up to {FARTHEST}, found an image of "
            f"{'x'.join(str(n) for n in ids.shape)} pixels\nwrite a label map (.tif) instead"
        )
    with written_aside(path, overwrite) as aside:
        roiwrite(aside, rois(ids, ignore), mode="w")


def rois(ids: NDArray[Any], ignore: int | None = None) -> Iterator[ImagejRoi]:
    """The ROIs that `write_rois` writes, slice by slice.

    Raises:
        DataError: `ids` is not ``(x, y)`` or ``(x, y, z)`` of whole numbers that are not negative.
    """
    if ids.ndim not in (2, 3) or ids.dtype.kind not in "bui":
        raise DataError(f"expected object ids (x, y) or (x, y, z) in whole numbers, found {ids.dtype} of {ids.shape}")
    if ids.ndim == 2:
        for number, mask, corner in _objects(ids, ignore):
            yield _roi(f"{number}", mask, corner)
        return
    for z in range(ids.shape[2]):
        for number, mask, corner in _objects(ids[:, :, z], ignore):
            roi = _roi(f"{number}_z{z + 1:03d}", mask, corner)
            roi.position = z + 1
            yield roi


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """The closed lines along pixel edges around a mask ``(x, y)``, each ``(n, 2)`` corners, the first not repeated.

    Outer lines run clockwise on a screen (y points down), those of holes the other way. Pixels that touch at a corner
    are inside one line that meets itself there, as in ImageJ, whose wand is 8-connected.
    """
    inside = np.pad(mask, 1)
    middle = inside[1:-1, 1:-1]
    sides = (inside[1:-1, :-2], inside[2:, 1:-1], inside[1:-1, 2:], inside[:-2, 1:-1])
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))
    edges: dict[tuple[int, int, int], None] = {}  # in order of insertion, so that the result has one order
    for direction, (beside, start) in enumerate(zip(sides, starts, strict=True)):
        for x, y in (np.argwhere(middle & ~beside) + start).tolist():
            edges[x, y, direction] = None
    found = []
    while edges:
        x, y, direction = next(iter(edges))
        corners: list[tuple[int, int]] = []
        previous = -1
        while (x, y, direction) in edges:
            del edges[x, y, direction]
            if direction != previous:
                corners.append((x, y))
            previous = direction
            x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
            turns = ((direction - 1) % 4, direction, (direction + 1) % 4)  # left first: across a touching corner
            direction = next((turn for turn in turns if (x, y, turn) in edges), previous)
        # an upper edge is found first, and the leftmost of its row, so every line starts at a corner
        found.append(np.array(corners, np.int32))
    return found


def _objects(ids: NDArray[Any], ignore: int | None) -> Iterator[tuple[int, NDArray[np.bool_], tuple[int, int]]]:
    """Each object of a picture: its id, its mask within its bounding box, and the box's first corner."""
    values, numbers = np.unique(ids, return_inverse=True)  # ids may be few and huge, find_objects lists all up to them
    if values.size and values[0] < 0:
        raise DataError(f"object ids must not be negative, found {values[0]}")
    numbers = numbers.reshape(ids.shape) + 1
    for number, box in enumerate(find_objects(numbers), start=1):
        value = int(values[number - 1])
        if value not in (0, ignore):
            yield value, numbers[box] == number, (box[0].start, box[1].start)


def _roi(name: str, mask: NDArray[np.bool_], corner: tuple[int, int]) -> ImagejRoi:
    """One line is a traced ROI; several, of parts and holes, are a composite one, whose path has absolute places."""
    lines = outlines(mask)
    left, top = corner
    box = {"left": left, "top": top, "right": left + mask.shape[0], "bottom": top + mask.shape[1], "name": name}
    if len(lines) == 1:
        return ImagejRoi(
            roitype=ROI_TYPE.TRACED, n_coordinates=len(lines[0]), integer_coordinates=lines[0], **box
        )  # fmt: skip
    path: list[float] = []
    for line in lines:
        for number, (x, y) in enumerate((line + corner).tolist()):
            path += [_LINE if number else _MOVE, x, y]
        path.append(_CLOSE)
    return ImagejRoi(
        roitype=ROI_TYPE.RECT, shape_roi_size=len(path), multi_coordinates=np.array(path, np.float32), **box
    )  # fmt: skip
