"""Training targets from object ids: the class indices of `InstanceSettings.learned`.

Depths are distances to the nearest voxel that is known not to be of the object, computed within its bounding box and
one voxel around it, where that nearest voxel always lies; distance transforms of whole images would take as long for
each object. Neither the picture's edge nor an unannotated voxel is an object's edge: what is cut off goes on there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.geometry.boxes import grown_slices
from medunet.instances.settings import InstanceSettings

UNKNOWN = -1
"""The number of voxels that are not annotated."""


def number_objects(values: NDArray[Any], labels: LabelTable, where: str) -> NDArray[np.int32]:
    """Objects numbered from 1 in the order of their ids, 0 for the background, `UNKNOWN` for the ignore value.

    Args:
        values: ids as a label file has them, any shape and number type.
        labels: the data set's own table.
        where: the case or file, for the message.

    Raises:
        DataError: an id is negative or no whole number.
    """
    inside = labels.to_indices(values, where)
    found, inverse = np.unique(values, return_inverse=True)
    numbers = np.zeros(len(found), np.int32)
    # Ids of any size and type, floats among them, are only ever compared.
    objects = (found > 0) if labels.ignore is None else (found > 0) & (found != labels.ignore)
    numbers[objects] = np.arange(1, np.count_nonzero(objects) + 1)
    numbered = numbers[inverse].reshape(values.shape)
    numbered[inside == IGNORE] = UNKNOWN
    return numbered


def make_target(objects: NDArray[np.int32], spacing: Sequence[float], settings: InstanceSettings) -> NDArray[np.uint8]:
    """The class indices that are learned in place of objects.

    Args:
        objects: ``(1, *spatial)``, numbered as `number_objects` does it; an object may have several pieces.
        spacing: of the voxels, one number per axis in any unit; depths are in units of the finest.
        settings: which classes.

    Returns:
        ``(1, *spatial)`` classes of `settings.learned`, IGNORE where nothing is known. All 0 without an object. With
        `separated`, both of two objects lose the voxels that touch the other, so that the gap is two voxels wide
        (Ronneberger et al.'s code takes them from the later one), and what is that thin is gone. With `border`, an
        object's deepest voxels stay its inside, however thin it is; so do all voxels of one that has no edge.
    """
    if settings.target == "separated":
        objects = part_touching(objects)
    target = (objects > 0).astype(np.uint8)
    if settings.target in ("border", "cores"):
        for box, inside, depth in object_depths(objects[0], spacing):
            classes = _border(depth, settings.border) if settings.target == "border" else _rings(depth, settings.depths)
            target[0][box][inside] = classes[inside]
    target[objects == UNKNOWN] = IGNORE
    return target


def part_touching(objects: NDArray[np.int32]) -> NDArray[np.int32]:
    """The same objects without the voxels that have another object's voxel among their 8 (in 3-D 26) neighbours.

    Args:
        objects: ``(1, *spatial)``, numbered as `number_objects` does it.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    volume = objects[0]
    nothing = np.iinfo(np.int32).max
    highest = maximum_filter(volume, 3, mode="nearest")
    lowest = minimum_filter(np.where(volume > 0, volume, nothing), 3, mode="nearest")
    touching = (volume > 0) & ((highest != volume) | (lowest != volume))
    return np.where(touching, 0, volume)[None]


def object_depths(
    volume: NDArray[np.int32], spacing: Sequence[float]
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.bool_], NDArray[np.float64]]]:
    """Object after object: its box, where in it the object is, and how deep each of its voxels lies, 0 elsewhere.

    The depth of a voxel at the edge is 1, also along a coarse axis: or objects on top of each other in thick slices
    would have none. It is 1 everywhere in an object without an edge, which fills all that is known.

    Args:
        volume: ``(*spatial)`` numbers.
        spacing: one number per axis in any unit.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    pitch = np.asarray(spacing, float) / min(spacing)
    for number, tight in enumerate(find_objects(volume), start=1):
        if tight is None:
            continue
        box = grown_slices(tight, 1, volume.shape)
        part = volume[box]
        inside = part == number
        closed = inside | (part == UNKNOWN)
        if closed.all():
            yield box, inside, inside.astype(float)
            continue
        depth = distance_transform_edt(closed, sampling=pitch)
        if pitch.max() > 1:
            depth[_at_edge(closed)] = 1
        yield box, inside, np.where(inside, depth, 0)


def _at_edge(closed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of a mask with a face neighbour outside of it; the array's own edge is none."""
    from scipy.ndimage import binary_erosion, generate_binary_structure

    cross = generate_binary_structure(closed.ndim, 1)
    found: NDArray[np.bool_] = closed & ~binary_erosion(closed, cross, border_value=1)
    return found


def _border(depth: NDArray[np.float64], width: float) -> NDArray[np.uint8]:
    """2 along the edge, 1 inside."""
    return np.where((depth <= width) & (depth < depth.max()), 2, 1).astype(np.uint8)


def _rings(depth: NDArray[np.float64], shares: Sequence[float]) -> NDArray[np.uint8]:
    """1 for the rim, and one more for each share of the largest depth that is exceeded."""
    rings: NDArray[np.uint8] = 1 + sum((depth > share * depth.max()).astype(np.uint8) for share in shares)
    return rings.astype(np.uint8)
