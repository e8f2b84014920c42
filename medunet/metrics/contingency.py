"""Contingency table of two maps of ids: the voxels that each pair shares, the base of all object scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_BINS = 1 << 24
"""Up to here counting into an array is quicker than sorting, and its memory no matter."""

Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Contingency:
    """Voxels by id of two maps; 0 is no object. Sparse: only pairs of objects that share a voxel are listed.

    Attributes:
        reference_ids, prediction_ids: ascending, without 0.
        reference_sizes, prediction_sizes: voxels of each object that count (ignored ones do not).
        hidden: voxels of each predicted object that are ignored.
        rows, columns: for each pair that shares voxels, the position in `reference_ids` and in `prediction_ids`.
        shared: number of voxels that the pair shares.
    """

    reference_ids: Ids
    prediction_ids: Ids
    reference_sizes: NDArray[np.int64]
    prediction_sizes: NDArray[np.int64]
    hidden: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    shared: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        """The IoU of each pair: voxels shared, divided by voxels of both."""
        return self.shared / (self.reference_sizes[self.rows] + self.prediction_sizes[self.columns] - self.shared)


def contingency(prediction: Ids, reference: Ids, ignore: NDArray[np.bool_] | None = None) -> Contingency:
    """Count the voxels that each object of one map shares with each of the other.

    Args:
        prediction: ids of any shape and integer type, 0 where there is no object.
        reference: ids of the same shape.
        ignore: voxels that count on neither side; what the reference holds there does not matter. Objects of the
            prediction that lie there alone stay in the table, with size 0.

    Raises:
        ValueError: shapes differ, or an id is negative.
    """
    if prediction.shape != reference.shape or (ignore is not None and ignore.shape != reference.shape):
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} (and ignore) must fit")
    if prediction.size and min(prediction.min(), reference.min()) < 0:
        raise ValueError("ids must not be negative")
    if ignore is not None:
        reference = np.where(ignore, 0, reference)
    prediction_ids, predicted = _numbered(prediction)
    reference_ids, true = _numbered(reference)
    count = len(prediction_ids) + 1, len(reference_ids) + 1
    hidden = np.zeros(count[0], np.int64)
    if ignore is not None:
        hidden = np.bincount(predicted[ignore], minlength=count[0])
        predicted, true = predicted[~ignore], true[~ignore]
    both = (predicted > 0) & (true > 0)
    rows, columns, shared = _pairs(true[both], predicted[both], count[0])
    return Contingency(
        reference_ids,
        prediction_ids,
        np.bincount(true.ravel(), minlength=count[1])[1:],
        np.bincount(predicted.ravel(), minlength=count[0])[1:],
        hidden[1:],
        rows,
        columns,
        shared,
    )


def _numbered(ids: Ids) -> tuple[Ids, NDArray[np.int64]]:
    """The ids above 0, ascending, and the map with them numbered from 1 on."""
    ids = ids.astype(np.int64, copy=False)
    largest = int(ids.max()) if ids.size else 0
    if largest < max(_MOST_BINS, ids.size):
        present = np.bincount(ids.ravel(), minlength=1) > 0
        present[0] = False
        number = np.where(present, np.cumsum(present), 0)
        return np.flatnonzero(present), number[ids]
    found, inverse = np.unique(ids, return_inverse=True)
    inverse = inverse.reshape(ids.shape)
    return (found[1:], inverse) if found[0] == 0 else (found, inverse + 1)


def _pairs(
    true: NDArray[np.int64], predicted: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, columns and counts of the pairs that occur; positions from 0 on."""
    pairs = true * width + predicted
    if pairs.size and int(pairs.max()) < _MOST_BINS:
        counts = np.bincount(pairs)
        found = np.flatnonzero(counts)
        shared = counts[found]
    else:
        found, shared = np.unique(pairs, return_counts=True)
    rows, columns = np.divmod(found, width)
    return rows - 1, columns - 1, shared
