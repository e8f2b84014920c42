"""Scores that count objects: CTC SEG and DET, precision, recall, F1 and AP by IoU, panoptic quality, kinds of errors.

Sources, and what is named after whom:

- SEG, DET: Cell Tracking Challenge (Ulman et al., Nature Methods 14:1141, 2017; Matula et al., PLoS ONE 10:e0144959,
  2015). A predicted object covers a reference object if it holds more than half of it, strictly.
- AP: TP / (TP + FP + FN), which the Data Science Bowl 2018 (Caicedo et al., Nature Methods 16:1247, 2019) and StarDist
  (Schmidt et al., MICCAI 2018; there `accuracy`) call average precision. It has no confidences and no curve, unlike
  the AP of COCO. A match has an IoU of the threshold or more. Pooled over images as StarDist's default, or by image
  and averaged as the Data Science Bowl did: both are given, and named.
- PQ: panoptic quality (Kirillov et al., CVPR 2019) of one class; a match has an IoU above 0.5, strictly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from medunet.metrics.contingency import Contingency, Ids, contingency
from medunet.metrics.overlap import Counts, Pooled

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The IoU thresholds over which mAP is averaged."""

OBJECT_POLICY = (
    "Objects are ids: every value above 0 is one, connected or not.",
    "SEG (Cell Tracking Challenge) is the mean over all reference objects of the IoU with the predicted object that "
    "holds more than half of them, 0 without one. It does not see invented objects, so read it beside precision or PQ.",
    "DET (Cell Tracking Challenge) is 1 - min(10 FN + 5 NS + FP, 10 R) / 10 R for R reference objects: FN are covered "
    "by no prediction, NS are the reference objects too many under a prediction that covers several, FP cover none. "
    "The challenge takes it on its tracking markers; here it is taken on the masks.",
    "A true positive (TP) at an IoU threshold is a pair of objects with at least this IoU, each object in one pair "
    "only (as many pairs as can be, then the largest sum of IoU). AP = TP / (TP + FP + FN), as Data Science Bowl 2018 "
    "and StarDist (accuracy) have it; mAP is its mean over the thresholds 0.5, 0.55, … 0.95.",
    "Pooled scores count the objects of all cases together; scores by image are means over cases.",
    "PQ = SQ · RQ: SQ is the mean IoU of pairs above 0.5, RQ their F1.",
    "Missed: covered by no prediction, and no prediction lies in it (by more than half of itself). Invented: covers no "
    "reference object and lies in none. Merged: a prediction that covers two or more reference objects. Split: a "
    "reference object in which two or more predictions lie.",
    "Ignored voxels are taken off the objects of both sides. A predicted object with more than half of its voxels on "
    "ignored ones is unjudged: it may be a match, but never a false positive or an invented object (Kirillov et al.).",
    "An image without any object on both sides has no scores and is left out of means. With objects on one side only, "
    "precision, recall, F1, AP and PQ are 0; without a reference object SEG and DET do not exist.",
)
"""How object scores are defined, sentence by sentence, for reports."""


@dataclass(frozen=True)
class Matches(Counts):
    """Pairs of objects at one IoU threshold: `Counts` of objects in place of voxels.

    StarDist gives 0 where there is no object on either side; here it is NaN.

    Attributes:
        iou_sum: sum of the pairs' IoU.
    """

    iou_sum: float = 0.0

    f1 = property(attrgetter("dice"))
    """Kirillov's recognition quality."""
    ap = property(attrgetter("iou"))
    """The AP of the Data Science Bowl, StarDist's accuracy."""

    @property
    def mean_true_score(self) -> float:
        """Sum of the pairs' IoU by reference object (StarDist's name)."""
        return self._share(self.iou_sum, self.reference)

    @property
    def mean_matched_score(self) -> float:
        """Sum of the pairs' IoU by pair; Kirillov's segmentation quality."""
        return self._share(self.iou_sum, self.true_positives)

    @property
    def panoptic_quality(self) -> float:
        """Sum of the pairs' IoU / (TP + FP / 2 + FN / 2)."""
        return self._share(self.iou_sum, self.true_positives + (self.false_positives + self.false_negatives) / 2)


@dataclass(frozen=True)
class ObjectCounts(Pooled):
    """The counts of one image that its scores are made of; `+` pools images. See `OBJECT_POLICY`.

    Attributes:
        reference: objects of the reference.
        prediction: predicted objects that are judged; `unjudged` ones lie mostly on ignored voxels and match nothing.
        coverage: sum over the reference objects of the IoU with the prediction that covers them.
        uncovered, surplus, idle: FN, NS and FP of the Cell Tracking Challenge.
        missed, invented, merged, split: kinds of errors.
        matches: one for each of `THRESHOLDS`.
        panoptic: pairs with an IoU above 0.5, strictly.
    """

    reference: int = 0
    prediction: int = 0
    unjudged: int = 0
    coverage: float = 0.0
    uncovered: int = 0
    surplus: int = 0
    idle: int = 0
    missed: int = 0
    invented: int = 0
    merged: int = 0
    split: int = 0
    matches: tuple[Matches, ...] = (Matches(),) * len(THRESHOLDS)
    panoptic: Matches = Matches()

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        matches = tuple(a + b for a, b in zip(self.matches, other.matches, strict=True))
        return replace(super().__add__(other), matches=matches)

    @property
    def seg(self) -> float:
        """SEG of the Cell Tracking Challenge; NaN without a reference object."""
        return self.coverage / self.reference if self.reference else nan

    @property
    def det(self) -> float:
        """DET of the Cell Tracking Challenge, on masks; NaN without a reference object."""
        whole = 10 * self.reference
        return 1 - min(10 * self.uncovered + 5 * self.surplus + self.idle, whole) / whole if whole else nan

    @property
    def mean_ap(self) -> float:
        """The mean over `THRESHOLDS`."""
        return float(np.mean([match.ap for match in self.matches]))

    @property
    def half(self) -> Matches:
        """The pairs at an IoU of 0.5."""
        return self.matches[0]

    ap50 = property(attrgetter("half.ap"))
    ap75 = property(lambda counts: counts.matches[5].ap)
    f1 = property(attrgetter("half.f1"))
    precision = property(attrgetter("half.precision"))
    recall = property(attrgetter("half.recall"))
    pq = property(attrgetter("panoptic.panoptic_quality"))
    sq = property(attrgetter("panoptic.mean_matched_score"))
    rq = property(attrgetter("panoptic.f1"))


@dataclass(frozen=True)
class ObjectErrors:
    """Ids of the wrong objects, and of the objects that belong together, for pictures.

    Attributes:
        partner: for each predicted object that touches any, the reference object that it shares most voxels with.
    """

    missed: Ids
    invented: Ids
    merged: Ids
    split: Ids
    partner: dict[int, int]


def count_objects(prediction: Ids, reference: Ids, ignore: NDArray[np.bool_] | None = None) -> ObjectCounts:
    """Compare two maps of object ids; `OBJECT_POLICY` says what the counts mean.

    Args:
        prediction: ids `(x, y)` or `(x, y, z)` of any integer type, 0 where there is no object.
        reference: ids of the same shape.
        ignore: unannotated voxels.

    Raises:
        ValueError: shapes differ, or an id is negative.
    """
    table = contingency(prediction, reference, ignore)
    judged, iou, covered = _judged(table), table.iou, _covering(table)
    counted = judged | _touched(table, iou >= THRESHOLDS[0])
    per_prediction = np.bincount(table.columns[covered], minlength=len(table.prediction_ids))
    return ObjectCounts(
        reference=len(table.reference_ids),
        prediction=int(np.count_nonzero(counted)),
        unjudged=int(np.count_nonzero(~counted)),
        coverage=float(iou[covered].sum()),
        uncovered=len(table.reference_ids) - int(np.count_nonzero(covered)),
        surplus=int(np.maximum(per_prediction - 1, 0).sum()),
        idle=int(np.count_nonzero((per_prediction == 0) & judged)),
        **{name: int(np.count_nonzero(found)) for name, found in _kinds(table).items()},
        matches=tuple(_matches(table, _paired(table, iou, iou >= t)) for t in THRESHOLDS),
        panoptic=_matches(table, np.flatnonzero(iou > 0.5)),
    )


def object_errors(prediction: Ids, reference: Ids, ignore: NDArray[np.bool_] | None = None) -> ObjectErrors:
    """Ids of the objects that are missed, invented, merged and split; arguments as for `count_objects`."""
    table = contingency(prediction, reference, ignore)
    kinds, order = _kinds(table), np.argsort(table.shared, kind="stable")
    predicted, true = table.prediction_ids[table.columns[order]], table.reference_ids[table.rows[order]]
    return ObjectErrors(
        missed=table.reference_ids[kinds["missed"]],
        invented=table.prediction_ids[kinds["invented"]],
        merged=table.prediction_ids[kinds["merged"]],
        split=table.reference_ids[kinds["split"]],
        partner=dict(zip(predicted.tolist(), true.tolist(), strict=True)),
    )


_Mask = NDArray[np.bool_]


def _judged(table: Contingency) -> _Mask:
    """Predicted objects of which at least half is annotated."""
    return table.hidden <= table.prediction_sizes


def _covering(table: Contingency) -> _Mask:
    """The pairs whose prediction holds more than half of the reference object; one at most for each object."""
    return 2 * table.shared > table.reference_sizes[table.rows]


def _lying(table: Contingency) -> _Mask:
    """The pairs whose reference object holds more than half of the prediction."""
    return 2 * table.shared > table.prediction_sizes[table.columns]


def _touched(table: Contingency, pairs: _Mask | NDArray[np.int64]) -> _Mask:
    """The predicted objects of the pairs."""
    touched = np.zeros(len(table.prediction_ids), dtype=bool)
    touched[table.columns[pairs]] = True
    return touched


def _kinds(table: Contingency) -> dict[str, _Mask]:
    """The wrong objects by the kind of their error: of the reference missed and split ones, else predicted ones."""
    references, predictions = len(table.reference_ids), len(table.prediction_ids)
    covering, lying = _covering(table), _lying(table)
    covered = np.bincount(table.rows[covering], minlength=references)
    held = np.bincount(table.rows[lying], minlength=references)
    return {
        "missed": (covered == 0) & (held == 0),
        "invented": ~_touched(table, lying | covering) & _judged(table),
        "merged": np.bincount(table.columns[covering], minlength=predictions) > 1,
        "split": held > 1,
    }


def _paired(table: Contingency, iou: NDArray[np.float64], allowed: _Mask) -> NDArray[np.int64]:
    """Positions of as many allowed pairs as possible, each object in one of them, with the largest sum of IoU."""
    pairs = np.flatnonzero(allowed)
    rows, columns = table.rows[pairs], table.columns[pairs]
    if len(np.unique(rows)) == len(rows) and len(np.unique(columns)) == len(columns):
        return pairs
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Objects that compete for partners form small groups, each of which is solved by itself.
    count = len(table.reference_ids), len(table.prediction_ids)
    graph = coo_array((np.ones(len(pairs)), (rows, columns + count[0])), shape=(sum(count),) * 2)
    group = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    chosen = [part if len(part) == 1 else part[_best(rows[part], columns[part], iou[pairs[part]])] for part in parts]
    return pairs[np.sort(np.concatenate(chosen))]


def _best(rows: NDArray[np.int64], columns: NDArray[np.int64], iou: NDArray[np.float64]) -> NDArray[np.int64]:
    """The Hungarian method on one group: most pairs first, then the largest sum of IoU."""
    from scipy.optimize import linear_sum_assignment

    row_ids, row = np.unique(rows, return_inverse=True)
    column_ids, column = np.unique(columns, return_inverse=True)
    gain = np.zeros((len(row_ids), len(column_ids)))
    # A pair more is worth more than all IoU of a matching together.
    gain[row, column] = iou + min(gain.shape) + 1
    number = np.full(gain.shape, -1)
    number[row, column] = np.arange(len(rows))
    found: NDArray[np.int64] = number[linear_sum_assignment(gain, maximize=True)]
    return found[found >= 0]


def _matches(table: Contingency, pairs: NDArray[np.int64]) -> Matches:
    return Matches(
        true_positives=len(pairs),
        false_positives=int(np.count_nonzero(_judged(table) & ~_touched(table, pairs))),
        false_negatives=len(table.reference_ids) - len(pairs),
        iou_sum=float(table.iou[pairs].sum()),
    )
