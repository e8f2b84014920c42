"""A single scan split inside: one part is held out, the rest is learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.splits import Fold
from medunet.errors import DataError
from medunet.patches.dataset import PreparedCase, find_foreground


def held_out_mask(shape: tuple[int, ...], fold: Fold) -> NDArray[np.bool_]:
    """The held-out part of a single scan: the scan is cut along its longest axis into one part for each fold.

    Fold 0 is the last part, fold 1 the one before it; of five, each is a fifth.

    Raises:
        DataError: the scan is shorter than there are folds.
    """
    axis = int(np.argmax(shape))
    length = shape[axis]
    if length < fold.count:
        raise DataError(
            f"the only scan has {length} voxels along its longest axis, from which {fold.count} parts cannot be cut\n"
            "give a smaller data.folds"
        )
    mask = np.zeros(shape, dtype=bool)
    first, last = (length - round(length * (fold.number + n) / fold.count) for n in (1, 0))
    np.moveaxis(mask, axis, 0)[first:last] = True
    return mask


def split_inside(case: PreparedCase, labels: LabelTable, fold: Fold) -> tuple[PreparedCase, PreparedCase]:
    """One scan as a training and a validation case, which see all of the image but not each other's labels.

    The other's labels are IGNORE.

    Args:
        labels: the table of the prepared label maps.
    """
    held = held_out_mask(case.label.shape[1:], fold)[None]
    learned, validated = np.where(held, IGNORE, case.label), np.where(held, case.label, IGNORE)
    return _relabelled(case, learned.astype(np.uint8), labels), _relabelled(case, validated.astype(np.uint8), labels)


def _relabelled(case: PreparedCase, label: NDArray[np.uint8], labels: LabelTable) -> PreparedCase:
    return replace(case, label=label, foreground=find_foreground(label, labels.foreground))
