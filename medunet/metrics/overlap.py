"""Scores that count voxels: Dice, IoU, precision, recall and volumes.

Names and formulas follow Taha and Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Medical
Imaging 15:29, 2015, and Maier-Hein et al., "Metrics reloaded", Nature Methods 21:195, 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import nan
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pooled:
    """Counts that `+` adds up field by field, such as those of several cases."""

    def __add__(self, other: Self) -> Self:
        return replace(self, **{field.name: getattr(self, field.name) + getattr(other, field.name)
                                for field in fields(self)})  # fmt: skip


_Pooled = TypeVar("_Pooled", bound=Pooled)


def pooled(counts: Sequence[_Pooled]) -> _Pooled:
    """The sum of the counts of one image or more."""
    return sum(counts[1:], counts[0])


@dataclass(frozen=True)
class Counts(Pooled):
    """Voxels of one structure that prediction and reference agree on, and those that they do not.

    Where neither mask holds a voxel all scores are NaN: there was nothing to find, and nothing was found. Where only
    one of them is empty all scores are 0. Precision without a prediction is 0/0 by its formula and 0 here, because a
    mean that leaves such cases out gets better by missing them.

    Attributes:
        true_positives: in both masks.
        false_positives: in the prediction alone.
        false_negatives: in the reference alone.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    @property
    def reference(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def prediction(self) -> int:
        return self.true_positives + self.false_positives

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return self._share(2 * self.true_positives, self.reference + self.prediction)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), the Jaccard index."""
        return self._share(self.true_positives, self.reference + self.false_positives)

    @property
    def precision(self) -> float:
        """TP / (TP + FP): the share of the prediction that is right."""
        return self._share(self.true_positives, self.prediction)

    @property
    def recall(self) -> float:
        """TP / (TP + FN), the sensitivity: the share of the reference that was found."""
        return self._share(self.true_positives, self.reference)

    @property
    def volume_similarity(self) -> float:
        """1 - |prediction - reference| / (prediction + reference): 1 for equal volumes at any place."""
        both = self.reference + self.prediction
        return self._share(both - abs(self.prediction - self.reference), both)

    @property
    def relative_volume_difference(self) -> float:
        """(prediction - reference) / reference, NaN without a reference; -1 is a missed structure."""
        return (self.prediction - self.reference) / self.reference if self.reference else nan

    def _share(self, part: float, whole: float) -> float:
        if self.reference == self.prediction == 0:
            return nan
        return part / whole if whole else 0.0


def count_overlap(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Counts:
    """Count the voxels of one structure; two masks of one shape, any number of axes."""
    both = int(np.count_nonzero(prediction & reference))
    return Counts(both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(reference)) - both)


Structure = int | tuple[int, ...]
"""The value of a structure in label maps, or the values whose union it is."""


def label_mask(labels: NDArray[Any], structure: Structure) -> NDArray[np.bool_]:
    """The mask of a structure in a label map."""
    if isinstance(structure, int):
        found: NDArray[np.bool_] = labels == structure
        return found
    return labels == structure[0] if len(structure) == 1 else np.isin(labels, structure)


def label_masks(
    prediction: NDArray[Any], reference: NDArray[Any], value: Structure, ignore: int | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The masks of one structure in prediction and reference, without the voxels that the reference ignores."""
    predicted, true = label_mask(prediction, value), label_mask(reference, value)
    if ignore is not None:
        known = reference != ignore
        predicted &= known
        true &= known
    return predicted, true


def count_labels(
    prediction: NDArray[Any], reference: NDArray[Any], labels: Mapping[str, Structure], ignore: int | None = None
) -> dict[str, Counts]:
    """Voxel counts by name, without distances: quick enough for every validation during training.

    Args:
        prediction: label map of any shape.
        reference: label map of the same shape.
        labels: name of each structure to count, and its value or values.
        ignore: the value of unannotated voxels in the reference.
    """
    return {name: count_overlap(*label_masks(prediction, reference, value, ignore)) for name, value in labels.items()}


def pixel_accuracy(prediction: NDArray[Any], reference: NDArray[Any], ignore: int | None = None) -> float:
    """The share of voxels, ignored ones left out, whose label is right; NaN where every voxel is ignored.

    The pixel error of the ISBI 2012 challenge is one minus this.
    """
    right = prediction == reference
    if ignore is not None:
        right = right[reference != ignore]
    return float(np.mean(right)) if right.size else nan
