"""Scores of many cases: means, spreads and the cases worth looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from medunet.metrics.boundaries import BoundaryCounts
from medunet.metrics.case import MEASURES, CaseScores, measures
from medunet.metrics.objects import ObjectCounts
from medunet.metrics.overlap import Counts, pooled


@dataclass(frozen=True)
class Statistics:
    """One measure of one structure over the cases that hold it.

    Attributes:
        count: number of cases that the statistics are taken over; all are NaN where it is 0.
        deviation: sample standard deviation (divisor count - 1); NaN for a single case.
        worst: the smallest value, for distances the largest.
    """

    count: int
    mean: float = nan
    deviation: float = nan
    median: float = nan
    worst: float = nan
    worst_case: str | None = None


@dataclass(frozen=True)
class LabelSummary:
    """One structure over all cases.

    Attributes:
        statistics: by `Measure.key`, over the cases in which the structure is not absent.
        outcomes: number of cases `compared`, `missed`, `invented` and `absent`.
        pooled: voxel counts added up over all cases.
    """

    label: str
    statistics: Mapping[str, Statistics]
    outcomes: Mapping[str, int]
    pooled: Counts


@dataclass(frozen=True)
class Summary:
    """All structures over all cases.

    Attributes:
        mean: by `Measure.key`: the mean over structures of their means over cases. Each structure weighs the same,
            however many cases hold it; a structure that is absent everywhere is left out.
        pooled_iou: the mean over structures of the IoU of their pooled voxel counts, as the computer-vision mean IoU.
            Voxels weigh the same, so unlike the means above it can gain by a missed small structure.
        pixel_accuracy: the mean over cases; the pixel error is one minus this. It weighs voxels as well.
        ranked: names of the cases by their mean Dice, worst first; cases without any structure are left out.
        objects, boundaries: pooled over the cases that were compared this way; None if no case was.
        annotated_share: of all voxels of all cases, those that do not hold the ignore value.
    """

    labels: tuple[LabelSummary, ...]
    mean: Mapping[str, float]
    pooled_iou: float
    pixel_accuracy: float
    ranked: tuple[str, ...]
    objects: ObjectCounts | None = None
    boundaries: BoundaryCounts | None = None
    annotated_share: float = nan

    @property
    def worst_case(self) -> str | None:
        return self.ranked[0] if self.ranked else None

    @property
    def median_case(self) -> str | None:
        """The middle one; the worse of two."""
        return self.ranked[(len(self.ranked) - 1) // 2] if self.ranked else None

    @property
    def best_case(self) -> str | None:
        return self.ranked[-1] if self.ranked else None


def summarise(cases: Sequence[CaseScores]) -> Summary:
    """The summary of cases that were scored for the same labels; NaN everywhere for no case."""
    objects = [case.objects for case in cases if case.objects is not None]
    boundaries = [case.boundaries for case in cases if case.boundaries is not None]
    voxels = sum(case.voxels for case in cases)
    means = [(mean, case.case) for case in cases if not isnan(mean := case.mean(MEASURES[0]))]
    names = list(dict.fromkeys(scores.label for case in cases for scores in case.labels))
    labels = tuple(_summarise_label(name, cases) for name in names)
    return Summary(
        labels=labels,
        mean={m.key: mean_of_known([label.statistics[m.key].mean for label in labels]) for m in measures()},
        pooled_iou=mean_of_known([label.pooled.iou for label in labels]),
        pixel_accuracy=mean_of_known([case.pixel_accuracy for case in cases]),
        ranked=tuple(name for _, name in sorted(means)),
        objects=pooled(objects) if objects else None,
        boundaries=pooled(boundaries) if boundaries else None,
        annotated_share=sum(case.annotated for case in cases) / voxels if voxels else nan,
    )


def _summarise_label(name: str, cases: Sequence[CaseScores]) -> LabelSummary:
    found = [(case.case, scores) for case in cases for scores in case.labels if scores.label == name]
    present = [(case, scores) for case, scores in found if scores.outcome != "absent"]
    outcomes = dict.fromkeys(("compared", "missed", "invented", "absent"), 0)
    for _, scores in found:
        outcomes[scores.outcome] += 1
    return LabelSummary(
        label=name,
        statistics={
            m.key: statistics_of({case: scores.value(m) for case, scores in present}, m.higher_is_better)
            for m in measures()
        },
        outcomes=outcomes,
        pooled=pooled([scores.counts for _, scores in found]),
    )


def statistics_of(by_case: Mapping[str, float], higher_is_better: bool = True) -> Statistics:
    """Mean, spread and worst case of one number per case."""
    if not by_case:
        return Statistics(0)
    values, cases = np.array(list(by_case.values())), list(by_case)
    worst = int(np.argmin(values) if higher_is_better else np.argmax(values))
    return Statistics(
        count=len(values),
        mean=float(values.mean()),
        deviation=float(values.std(ddof=1)) if len(values) > 1 else nan,
        median=float(np.median(values)),
        worst=float(values[worst]),
        worst_case=cases[worst],
    )


def mean_of_known(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if all are."""
    known = [value for value in values if not isnan(value)]
    return float(np.mean(known)) if known else nan
