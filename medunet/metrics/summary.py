"""Scores of many cases: means, spreads and the cases worth looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from medunet.metrics.case import MEASURES, CaseScores, LabelScores, Measure
from medunet.metrics.overlap import Counts


@dataclass(frozen=True)
class Statistics:
    """One measure of one structure over the cases that hold it.

    Attributes:
        count: how many cases the numbers are taken over; with none all of them are NaN.
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
    """

    labels: tuple[LabelSummary, ...]
    mean: Mapping[str, float]
    pooled_iou: float
    pixel_accuracy: float
    ranked: tuple[str, ...]

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
    """Summarise the scores of cases that were scored for the same labels; no case at all gives NaN everywhere."""
    names = list(dict.fromkeys(scores.label for case in cases for scores in case.labels))
    labels = tuple(_summarise_label(name, cases) for name in names)
    return Summary(
        labels=labels,
        mean={m.key: _mean([label.statistics[m.key].mean for label in labels]) for m in MEASURES},
        pooled_iou=_mean([label.pooled.iou for label in labels]),
        pixel_accuracy=_mean([case.pixel_accuracy for case in cases]),
        ranked=_ranked(cases),
    )


def _summarise_label(name: str, cases: Sequence[CaseScores]) -> LabelSummary:
    found = [(case.case, scores) for case in cases for scores in case.labels if scores.label == name]
    present = [(case, scores) for case, scores in found if scores.outcome != "absent"]
    outcomes = dict.fromkeys(("compared", "missed", "invented", "absent"), 0)
    for _, scores in found:
        outcomes[scores.outcome] += 1
    return LabelSummary(
        label=name,
        statistics={measure.key: _statistics(present, measure) for measure in MEASURES},
        outcomes=outcomes,
        pooled=sum((scores.counts for _, scores in found), Counts(0, 0, 0)),
    )


def _statistics(present: Sequence[tuple[str, LabelScores]], measure: Measure) -> Statistics:
    if not present:
        return Statistics(0)
    values = np.array([scores.value(measure) for _, scores in present])
    worst = int(np.argmin(values) if measure.higher_is_better else np.argmax(values))
    return Statistics(
        count=len(values),
        mean=float(values.mean()),
        deviation=float(values.std(ddof=1)) if len(values) > 1 else nan,
        median=float(np.median(values)),
        worst=float(values[worst]),
        worst_case=present[worst][0],
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return float(np.mean(known)) if known else nan


def _ranked(cases: Sequence[CaseScores]) -> tuple[str, ...]:
    means = [(case.mean(MEASURES[0]), case.case) for case in cases]
    return tuple(name for mean, name in sorted(pair for pair in means if not isnan(pair[0])))
