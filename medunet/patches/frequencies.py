"""Class frequencies: the share of the training cases that each class covers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medunet.patches.dataset import PreparedCase

_ENOUGH = 2**20
"""Voxels of a case that shares are taken from; more would make the start of a training on large scans slow."""


def class_voxels(cases: Iterable[PreparedCase], classes: int) -> list[int]:
    """The annotated voxels of each class, in all cases."""
    found: list[int] = _count((case.label[0] for case in cases), classes).tolist()
    return found


def class_frequencies(cases: Iterable[PreparedCase], classes: int) -> list[float]:
    """The share of the annotated voxels that each class has, over all cases; all 0 where nothing is annotated.

    Of large cases, which may be mapped from files, every n-th slice along the first axis counts.
    """
    labels = (case.label[0] for case in cases)
    counts = _count((label[:: max(1, label.size // _ENOUGH)] for label in labels), classes)
    found: list[float] = (counts / max(1, counts.sum())).tolist()
    return found


def _count(labels: Iterable[NDArray[np.integer]], classes: int) -> NDArray[np.int64]:
    """Slice by slice, because counting takes eight bytes a voxel."""
    counts = np.zeros(classes, np.int64)
    for label in labels:
        for piece in label:
            known = piece[(piece >= 0) & (piece < classes)]
            counts += np.bincount(known.ravel(), minlength=classes)
    return counts
