"""Watershed of objects that touch: its seeds, and the basins that grow from them.

Everything here concerns arrays that are in memory as a whole: one connected component of the mask in its own box.
Neighbours share faces, edges or corners (8 in 2-D, 26 in 3-D), as in the rest of medunet. Floods never leave a
component, and what is returned depends on nothing outside of it, so components may be looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import ConfigError

LEVELS_BYTES, DISTANCE_BYTES = 80, 84
"""Memory that cutting a component takes for each voxel of its box, by `cut_by_levels` or `cut_by_depth`, and by
`cut_by_distance`. Measured were 31, 30 and 55 bytes in a smooth cluster of 128³ voxels, and 79, 76 and 81 where noise
or tiny seeds put most voxels into the flood's queue at once (before planes were swept and seeds' insides left out: 53,
87 and 133, and 83, 99 and 142)."""


_SWEPT = 2**16
"""Voxels from which sweeping planes is faster than scikit-image's reconstruction."""


@dataclass(frozen=True)
class ObjectRule:
    """The rule for objects: which are kept, and how they are cut.

    Attributes:
        min_size: objects of fewer voxels (of the scan) are left out; None leaves that to the model, which knows how
            small those were that it learned from.
        fill_holes: background that an object encloses becomes the object's.
        drop_edge: objects that reach the border of the scan, in 3-D its first and last slice too, are left out.
        split: cuts components at their necks where a model learned nothing that keeps touching objects apart: both
            parts are deeper than the neck by more than this many voxels (the h of h-maxima of the distance to the
            background). None leaves every component one object.

    Raises:
        ConfigError: a number is out of its range.
    """

    min_size: int | None = None
    fill_holes: bool = False
    drop_edge: bool = False
    split: float | None = None

    def __post_init__(self) -> None:
        if self.min_size is not None and self.min_size < 0:
            raise ConfigError(f"the smallest size of objects must be 0 or more voxels, found {self.min_size}")
        if self.split is not None and not (self.split > 0 and isfinite(self.split)):
            raise ConfigError(f"objects are split by a positive depth in voxels, found {self.split}")


def connected(array: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """The components of what is not 0, numbered from 1, and how many there are."""
    from scipy.ndimage import generate_binary_structure, label

    numbers, count = label(array, generate_binary_structure(array.ndim, array.ndim))
    return numbers, int(count)


def cut_by_levels(levels: NDArray[np.uint8], elevation: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Cut a component at the ridges of its elevation.

    Args:
        levels: `(*spatial)`, 0 outside of the component, and higher the deeper inside of an object a voxel is; all
            voxels above 0 are connected. Every component of a level that holds none of a higher one is a seed, so that
            a small object without a core of its own is not lost to its neighbour.
        elevation: `(*spatial)`, low inside of objects and high between them.

    Returns:
        Numbers from 1 for every voxel of the component, 0 outside of it, and how many there are.
    """
    seeds, count = _leaves(levels)
    mask = levels > 0
    return (mask.astype(np.int32), count) if count < 2 else (_flooded(elevation, seeds, mask), count)


def cut_by_depth(mask: NDArray[np.bool_], elevation: NDArray[Any], depth: float) -> tuple[NDArray[np.int32], int]:
    """Cut a component at the ridges that rise high enough above the basins on both sides.

    Args:
        mask: `(*spatial)`, one component.
        elevation: `(*spatial)`, low inside of objects and high between them; anything outside of the mask.
        depth: the h of h-minima: of two basins the shallower one lies more than this below the lowest way from one to
            the other, or both are one object.

    Returns:
        As `cut_by_levels`.
    """
    seeds, count = connected(_basins(mask, elevation, depth))
    return (mask.astype(np.int32), 1) if count < 2 else (_flooded(elevation, seeds, mask), count)


def _basins(mask: NDArray[np.bool_], elevation: NDArray[Any], depth: float) -> NDArray[np.bool_]:
    """The bottoms of the basins of a component that are deeper than `depth`."""
    from skimage.morphology import local_minima

    # As `skimage.morphology.h_minima`, which parts at ridges of exactly h as well.
    above = float(np.max(elevation, where=mask, initial=-np.inf)) + 2 * depth
    height = np.where(mask, elevation, above)
    filled = height + depth
    np.minimum(filled, above, out=filled)
    _lower(filled, height)
    del height  # before the next step takes its own copies
    return np.asarray(local_minima(filled, connectivity=mask.ndim) & mask)


def _lower(surface: NDArray[Any], ground: NDArray[Any]) -> None:
    """Lower a surface, in place, as far as it is not held by the ground or by higher neighbours on all ways down.

    Morphological reconstruction by erosion, whose result is defined by minima and maxima alone, so that it is the same
    to the last bit however it is computed. scikit-image's takes 70 to 100 bytes a voxel, which is worth it for small
    arrays alone; here planes are swept along each axis, there and back (Vincent, IEEE TIP 2:176, 1993), until nothing
    changes, which were 2 or 3 rounds where measured.

    Args:
        surface, ground: `(*spatial)` of one type; the surface is nowhere below the ground.
    """
    from skimage.morphology import reconstruction

    if surface.size < _SWEPT:
        surface[...] = reconstruction(surface, ground, "erosion", np.ones((3,) * surface.ndim))
    else:
        _sweep(surface, ground)


def _sweep(surface: NDArray[Any], ground: NDArray[Any]) -> None:
    """`_lower`, plane by plane."""
    from scipy.ndimage import minimum_filter

    changed = True
    while changed:
        changed = False
        for axis in range(surface.ndim):
            here, below = np.moveaxis(surface, axis, 0), np.moveaxis(ground, axis, 0)
            for direction in (1, -1):
                planes = range(1, len(here)) if direction == 1 else range(len(here) - 2, -1, -1)
                for plane in planes:
                    reached = minimum_filter(here[plane - direction], 3, mode="nearest")
                    np.maximum(reached, below[plane], out=reached)
                    changed = changed or bool((reached < here[plane]).any())
                    np.minimum(reached, here[plane], out=here[plane])


def cut_by_distance(mask: NDArray[np.bool_], depth: float, spacing: Sequence[float]) -> tuple[NDArray[np.int32], int]:
    """Cut a component at its necks.

    Args:
        mask: `(*spatial)`, one component; a voxel of background around it, except where the scan ends.
        depth: see `cut_by_depth`, in units of `spacing`.
        spacing: the size of a voxel along each axis; for `depth` in voxels, relative to the smallest.

    Returns:
        As `cut_by_levels`.
    """
    from scipy.ndimage import distance_transform_edt

    if mask.all():
        return mask.astype(np.int32), 1  # there is no background that any depth could be measured from
    return cut_by_depth(mask, -distance_transform_edt(mask, sampling=spacing), depth)


def holes_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The holes that a mask `(*spatial)` encloses; the voxels of a hole share faces (4 and 6 neighbours)."""
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes(mask) & ~mask)


def without_gaps(ids: NDArray[Any], reach: int) -> NDArray[Any]:
    """Objects grown until they touch, where a gap of at most `2 * reach` voxels lies between them.

    This gives back what training took from objects that touch: voxels with another object within `reach`.

    Args:
        ids: `(*spatial)`, 0 is background.
        reach: how many voxels each object may grow; nothing beyond `2 * reach` voxels has an influence on a voxel.

    Returns:
        A new array. A voxel between two objects goes to the nearer one, in a tie to the one that comes first in C
        order.
    """
    from scipy.ndimage import maximum_filter

    around = np.nonzero((ids == 0) & (maximum_filter(ids, 2 * reach + 1, mode="constant", cval=0) > 0))
    padded = np.pad(ids, reach)
    given = np.zeros(len(around[0]), dtype=ids.dtype)
    for offset in _near_first(ids.ndim, reach):
        there = padded[tuple(place + reach + step for place, step in zip(around, offset, strict=True))]
        given = np.where(given == 0, there, given)
    grown = ids.copy()
    grown[around] = given
    return np.where((ids == 0) & ~_touching(grown, reach), 0, grown)


def _touching(ids: NDArray[Any], reach: int) -> NDArray[np.bool_]:
    """Voxels of objects that have another object within `reach` voxels."""
    from scipy.ndimage import maximum_filter, minimum_filter

    window, none = 2 * reach + 1, np.iinfo(ids.dtype).max
    highest = maximum_filter(ids, window, mode="constant", cval=0)
    lowest = minimum_filter(np.where(ids == 0, none, ids), window, mode="constant", cval=none)
    found: NDArray[np.bool_] = (ids > 0) & (lowest < highest)
    return found


def _near_first(ndim: int, reach: int) -> list[tuple[int, ...]]:
    """Steps to all voxels of a window, by distance, then in C order."""
    steps = [tuple(int(n) - reach for n in index) for index in np.ndindex(*(2 * reach + 1,) * ndim)]
    return sorted(steps, key=lambda step: sum(n * n for n in step))


def _leaves(levels: NDArray[np.uint8]) -> tuple[NDArray[np.int32], int]:
    """Components of each level that hold no component of a higher level."""
    seeds, count = np.zeros(levels.shape, dtype=np.int32), 0
    for level in range(int(levels.max(initial=0)), 0, -1):
        numbers, found = connected(levels >= level)
        new = np.ones(found + 1, dtype=bool)
        new[0] = False
        new[numbers[seeds > 0]] = False
        seeds += np.where(new, count + np.cumsum(new), 0).astype(np.int32)[numbers]
        count += int(np.count_nonzero(new))
    return seeds, count


def _flooded(elevation: NDArray[Any], seeds: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The watershed of scikit-image, made independent of what lies outside of the mask.

    It floods voxels by elevation and then by when they were reached. Only seeds of equal elevation have no order among
    themselves (the queue's inner state, and so voxels elsewhere, decides). So all seeds are put below everything else,
    each voxel lower than the next one in C order.
    """
    from scipy.ndimage import maximum_filter
    from skimage.segmentation import watershed

    seeded = seeds > 0
    # Seeds' insides have nothing to flood, so they are left out: the queue would take 40 bytes and more for each.
    inside = seeded & ~maximum_filter(mask & ~seeded, 3, mode="constant", cval=False)
    edge = seeded & ~inside
    del seeded
    count = np.count_nonzero(edge)
    # Whole numbers of this size are exact in float32.
    height = np.array(elevation, dtype=np.float32 if elevation.dtype == np.float32 and count < 2**22 else np.float64)
    lowest = np.floor(np.min(height, where=mask, initial=np.inf))
    height[edge] = lowest - count + np.arange(count)
    del edge
    flooded = np.asarray(watershed(height, seeds, connectivity=mask.ndim, mask=mask & ~inside))
    np.copyto(flooded, seeds, where=inside)
    return flooded
