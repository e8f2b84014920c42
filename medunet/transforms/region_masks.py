"""Binary masks of regions, made from a finished label map, so that masks and label map cannot disagree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import LabelTable
from medunet.system.blocks import BLOCK, Empty
from medunet.system.scratch import release

_RESERVED = ("probabilities",)
"""What else is written beside a label map under its name."""


def mask_values(labels: LabelTable) -> dict[str, tuple[int, ...]]:
    """The label values that make up each region, by what its mask's file is called after `CASE_`; empty without any.

    Whatever is no letter, digit, dot or hyphen in a region's name becomes `_`; names that are then alike, for file
    systems that know no capitals as well, are numbered.
    """
    named: dict[str, tuple[int, ...]] = {}
    taken = set(_RESERVED)
    for name, indices in labels.scored.items() if labels.regions else ():
        plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or "region"
        unique, number = plain, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}_{number}"
        taken.add(unique.casefold())
        named[unique] = tuple(labels.values[index] for index in indices)
    return named


def region_mask(labels: NDArray[Any], values: Sequence[int], empty: Empty) -> NDArray[np.uint8]:
    """1 where a label map holds one of the values, else 0; made part by part.

    Args:
        labels: `(1, *spatial)`; may live in a file.
        empty: makes the array.

    Returns:
        `(1, *spatial)`, in the order of memory that the label map has.
    """
    order = sorted(range(1, labels.ndim), key=lambda axis: -abs(labels.strides[axis]))
    stored = labels.transpose(0, *order)[0]
    mask = empty((1, *stored.shape), np.uint8)
    rows = max(1, BLOCK * len(stored) // max(1, stored.nbytes))
    for start in range(0, len(stored), rows):
        mask[0, start : start + rows] = np.isin(stored[start : start + rows], values)
        release(labels)
        release(mask)
    return mask.transpose(0, *(order.index(axis) + 1 for axis in range(1, labels.ndim)))
