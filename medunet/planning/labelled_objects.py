"""Labelled objects of one case: connected parts of each class, or the ids of an instance map, and their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.instances.watershed import connected


@dataclass(frozen=True)
class Objects:
    """The connected parts of a class in one case; in instance maps the objects, whether connected or not.

    Attributes:
        count: how many; 0 where the class is absent.
        smallest, median: voxels of the smallest and of the median one; 0 where there is none.
        touching: how many have a face neighbour that belongs to another object (instance maps only).
    """

    count: int
    smallest: int
    median: int
    touching: int = 0


def connected_parts(label: NDArray[np.uint8], classes: Sequence[int]) -> tuple[Objects, ...]:
    """The parts of each class, neighbours across faces, edges and corners being connected.

    Args:
        label: ``(*spatial)`` class indices.
        classes: which to look at; one result for each, in this order.
    """
    from scipy.ndimage import find_objects

    everywhere = (slice(0, None),) * label.ndim
    boxes = find_objects(label, max_label=max(classes, default=0)) if max(classes, default=0) > 0 else []
    result = []
    for c in classes:
        # scipy gives no box for 0, and None for classes without a voxel.
        box = boxes[c - 1] if c > 0 else everywhere
        if box is None:
            result.append(Objects(0, 0, 0))
            continue
        parts, _ = connected(label[box] == c)
        result.append(_of_sizes(np.bincount(parts.ravel())[1:]))
    return tuple(result)


def instance_objects(ids: NDArray[np.integer[Any]], ignore: int | None) -> Objects:
    """The objects of an instance map ``(*spatial)``: every value above 0 but `ignore` is an object.

    They touch where a voxel's face neighbour has another id above 0.
    """
    known = ids if ignore is None else np.where(ids == ignore, 0, ids)
    values, counts = np.unique(known, return_counts=True)
    touching: set[int] = set()
    for axis in range(known.ndim):
        first, second = (known.take(range(*span), axis) for span in ((0, ids.shape[axis] - 1), (1, ids.shape[axis])))
        border = (first != second) & (first > 0) & (second > 0)
        touching.update(np.unique(first[border]).tolist(), np.unique(second[border]).tolist())
    return _of_sizes(counts[values > 0], len(touching))


def _of_sizes(sizes: NDArray[np.integer[Any]], touching: int = 0) -> Objects:
    if not sizes.size:
        return Objects(0, 0, 0)
    return Objects(int(sizes.size), int(sizes.min()), int(np.median(sizes)), touching)
