"""How much of the training cases each class covers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medunet.data.patches import PreparedCase

_ENOUGH = 2**20
"""Voxels of a case that are looked at; more would make the start of a training on large scans slow."""


def class_shares(cases: Iterable[PreparedCase], classes: int) -> NDArray[np.float64]:
    """The share of the annotated voxels that each class has, over all cases.

    Of large cases, which may be mapped from files, every n-th slice along the first axis counts.

    Returns:
        ``(classes,)``, with the sum 1; all 0 where nothing is annotated.
    """
    counts = np.zeros(classes, np.int64)
    for case in cases:
        label = case.label[0]
        seen = np.asarray(label[:: max(1, label.size // _ENOUGH)]).ravel()
        counts += np.bincount(seen[(seen >= 0) & (seen < classes)], minlength=classes)
    return counts / max(1, counts.sum())
