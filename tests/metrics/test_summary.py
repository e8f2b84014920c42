"""Summaries: known numbers, and the promise that a missed structure never improves an average."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medunet.metrics.case import MEASURES, CaseScores, score_case
from medunet.metrics.overlap import pixel_accuracy
from medunet.metrics.summary import Summary, summarise

LABELS = {"a": 1, "b": 2}


def scored(name: str, prediction: np.ndarray, reference: np.ndarray) -> CaseScores:
    scores = score_case(prediction, reference, (1.0, 2.5), LABELS)
    return CaseScores(name, tuple(scores), pixel_accuracy(prediction, reference), 1.0)


label_maps = arrays(np.uint8, (5, 4), elements=st.integers(0, 2))
pairs = st.lists(st.tuples(label_maps, label_maps), min_size=1, max_size=4)


def averages(summary: Summary) -> dict[tuple[str, str], tuple[float, bool]]:
    """Every average that a summary reports, with whether higher is better."""
    found = {}
    for measure in MEASURES:
        found["all", measure.key] = summary.mean[measure.key], measure.higher_is_better
        for label in summary.labels:
            statistics = label.statistics[measure.key]
            found[label.label, measure.key] = statistics.mean, measure.higher_is_better
            found[label.label, measure.key + " median"] = statistics.median, measure.higher_is_better
            found[label.label, measure.key + " worst"] = statistics.worst, measure.higher_is_better
    return found


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(pairs=pairs, data=st.data())
def test_a_missed_structure_never_improves_an_average(pairs: list, data: st.DataObject) -> None:
    """Take any cases, delete the prediction of one structure that is there: no reported average gets better."""
    case = data.draw(st.integers(0, len(pairs) - 1))
    value = data.draw(st.sampled_from(sorted(LABELS.values())))
    prediction, reference = pairs[case]
    before = [scored(str(i), p, r) for i, (p, r) in enumerate(pairs)]
    emptied = np.where(prediction == value, 0, prediction)
    after = list(before)
    after[case] = scored(str(case), emptied, reference)
    if not (reference == value).any():
        return
    better = averages(summarise(before))
    for key, (worse_value, higher_is_better) in averages(summarise(after)).items():
        value_before = better[key][0]
        assert isnan(worse_value) == isnan(value_before), key
        if not isnan(worse_value):
            difference = worse_value - value_before if higher_is_better else value_before - worse_value
            assert difference <= 1e-9, key
    for measure in MEASURES:
        gain = after[case].mean(measure) - before[case].mean(measure)
        assert (gain if measure.higher_is_better else -gain) <= 1e-9


def maps(*rows: str) -> np.ndarray:
    return np.array([[int(letter) for letter in row] for row in rows])


PERFECT = scored("perfect", maps("1122", "1122"), maps("1122", "1122"))
MISSED = scored("missed", maps("0022", "0022"), maps("1122", "1122"))
WITHOUT_A = scored("without a", maps("0020", "0000"), maps("0022", "0000"))
NOTHING = scored("nothing", maps("0000", "0000"), maps("0000", "0000"))


def test_means_and_counts_by_hand() -> None:
    summary = summarise([PERFECT, MISSED, WITHOUT_A, NOTHING])
    a, b = summary.labels
    assert a.outcomes == {"compared": 1, "missed": 1, "invented": 0, "absent": 2}
    assert (a.statistics["dice"].count, a.statistics["dice"].mean) == (2, 0.5)
    assert a.statistics["dice"].deviation == pytest.approx(np.std([1, 0], ddof=1))
    assert (a.statistics["dice"].worst, a.statistics["dice"].worst_case) == (0.0, "missed")
    assert b.statistics["dice"].mean == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert summary.mean["dice"] == pytest.approx((0.5 + 8 / 9) / 2)
    assert a.pooled.iou == pytest.approx(4 / 8)
    assert summary.pooled_iou == pytest.approx((4 / 8 + 9 / 10) / 2)
    assert summary.pixel_accuracy == pytest.approx((1 + 4 / 8 + 7 / 8 + 1) / 4)


def test_ranking_leaves_out_cases_without_any_structure() -> None:
    summary = summarise([PERFECT, NOTHING, MISSED, WITHOUT_A])
    assert summary.ranked == ("missed", "without a", "perfect")
    assert (summary.worst_case, summary.median_case, summary.best_case) == ("missed", "without a", "perfect")


def test_distances_are_worst_where_they_are_largest() -> None:
    worst = summarise([PERFECT, MISSED]).labels[0].statistics["hausdorff95"]
    assert worst.worst_case == "missed" and worst.worst == pytest.approx(np.hypot(2, 4 * 2.5))


def test_nothing_to_average_is_nan_and_not_zero() -> None:
    for summary in (summarise([NOTHING]), summarise([])):
        assert isnan(summary.mean["dice"]) and isnan(summary.pooled_iou)
        assert summary.worst_case is None


def test_one_case_has_no_deviation() -> None:
    assert isnan(summarise([PERFECT]).labels[0].statistics["dice"].deviation)
