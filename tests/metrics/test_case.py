"""Cases: cropping changes nothing, labels stay apart, ignored voxels vanish, empty sides follow the policy."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from scipy import ndimage

from medunet.errors import ConfigError
from medunet.evaluation.scorecard import Scorecard, score_record, score_table
from medunet.metrics.case import MEASURES, REGISTERED, CaseScores, register_metric, score_case
from medunet.metrics.overlap import Counts
from medunet.metrics.summary import summarise
from medunet.metrics.surface import surface_scores


def label_map(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.digitize(ndimage.gaussian_filter(rng.standard_normal(shape), 1.5), (-0.1, 0.05, 0.12))


def test_each_label_is_scored_as_if_it_were_alone(rng: np.random.Generator) -> None:
    """Cropping to the structures is an optimisation: it must not change one score."""
    prediction, reference = label_map(rng, (18, 17, 12)), label_map(rng, (18, 17, 12))
    spacing = (1.0, 0.6, 2.0)
    for scores in score_case(prediction, reference, spacing, {"a": 3, "b": 1}, tolerance=1.2):
        value = {"a": 3, "b": 1}[scores.label]
        assert scores.surfaces == surface_scores(prediction == value, reference == value, spacing, 1.2)
        assert scores.counts.reference == np.sum(reference == value)
        assert scores.reference_volume == pytest.approx(np.sum(reference == value) * 1.2)


def test_a_structure_one_slice_thin_is_not_mistaken_for_a_picture() -> None:
    """Cut to its own slice, a disc would lose the surface that it has above and below."""
    reference, prediction = np.zeros((2, 9, 9, 6), int)
    reference[1:8, 1:8, 3] = 1
    prediction[3:6, 3:6, 3] = 1
    (scores,) = score_case(prediction, reference, (1.0, 1.0, 1.0), {"disc": 1})
    whole = surface_scores(prediction == 1, reference == 1, (1.0, 1.0, 1.0), 1.0)
    assert scores.surfaces == whole and whole.surface_dice == pytest.approx((9 + 9 + 12) / (9 + 49))


@pytest.mark.parametrize("corner", [0, -1])
def test_a_voxel_in_the_corner_is_scored(corner: int) -> None:
    reference, prediction = np.zeros((2, 6, 6, 6), int)
    reference[corner, corner, corner] = prediction[corner, corner, 2] = 1
    (scores,) = score_case(prediction, reference, (1.0, 1.0, 2.0), {"dot": 1})
    assert scores.hausdorff == {0: 4.0, -1: 6.0}[corner]


def test_outcomes_and_worst_values() -> None:
    reference, prediction = np.zeros((2, 3, 4), int)
    reference[0, 0], prediction[2, 3] = 1, 2
    labels = {"missed": 1, "invented": 2, "absent": 3}
    missed, invented, absent = score_case(prediction, reference, (1.0, 1.0), labels)
    assert [s.outcome for s in (missed, invented, absent)] == ["missed", "invented", "absent"]
    for scores in (missed, invented):
        for measure in MEASURES:
            assert scores.value(measure) == (5.0 if measure.is_distance else 0.0)
    assert all(isnan(absent.value(measure)) for measure in MEASURES)
    assert (missed.volume_difference, invented.volume_difference) == (-1.0, 1.0)


def test_no_measured_distance_reaches_that_of_a_miss() -> None:
    reference, prediction = np.zeros((2, 3, 4, 5), int)
    reference[0, 0, 0] = prediction[-1, -1, -1] = 1
    (measured,) = score_case(prediction, reference, (1.0, 2.0, 3.0), {"dot": 1})
    (missed,) = score_case(np.zeros_like(reference), reference, (1.0, 2.0, 3.0), {"dot": 1})
    assert all(measured.value(m) < missed.value(m) for m in MEASURES if m.is_distance)


def test_what_the_prediction_says_about_ignored_voxels_does_not_matter(rng: np.random.Generator) -> None:
    prediction, reference = label_map(rng, (20, 20)), label_map(rng, (20, 20))
    reference[5:12, 3:9] = 255
    other = prediction.copy()
    other[reference == 255] = rng.integers(0, 4, np.sum(reference == 255))
    labels = {"one": 1, "two": 2}
    first, second = (score_case(p, reference, (1.0, 1.0), labels, ignore=255) for p in (prediction, other))
    assert first == second
    assert first != score_case(other, reference, (1.0, 1.0), labels)


def test_a_structure_predicted_in_ignored_voxels_alone_is_absent() -> None:
    reference, prediction = np.full((4, 4), 9), np.ones((4, 4), int)
    (scores,) = score_case(prediction, reference, (1.0, 1.0), {"one": 1}, ignore=9)
    assert scores.outcome == "absent" and scores.counts == Counts(0, 0, 0)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        score_case(np.zeros((3, 3)), np.zeros((3, 4)), (1.0, 1.0), {"one": 1})
    with pytest.raises(ValueError, match="do not fit"):
        score_case(np.zeros((3, 3)), np.zeros((3, 3)), (1.0, 1.0, 1.0), {"one": 1})


def test_a_metric_of_ones_own_is_scored_and_summarised() -> None:
    """A miss scores the worst, an absent structure nothing; the function sees masks without ignored voxels."""
    seen: list[tuple[int, int]] = []

    def voxels_apart(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> float:
        seen.append((int(prediction.sum()), int(reference.sum())))
        return abs(int(prediction.sum()) - int(reference.sum())) * float(np.prod(spacing))

    register_metric("voxels_apart", voxels_apart, worst=99, higher_is_better=False)
    try:
        reference = np.array([[1, 1, 1, 255], [2, 2, 0, 0]])
        prediction = np.array([[1, 0, 0, 1], [0, 0, 0, 0]])
        scores = score_case(prediction, reference, (2.0, 1.0), {"a": 1, "b": 2, "c": 3}, ignore=255)
        assert seen == [(1, 3)]
        case = CaseScores("x", tuple(scores), 1.0, 1.0)
        summary = summarise([case])
        found = {label.label: label.statistics["voxels_apart"] for label in summary.labels}
        assert (found["a"].mean, found["b"].mean, found["c"].count) == (4, 99, 0)
        assert summary.mean["voxels_apart"] == (4 + 99) / 2
        card = Scorecard("t", (case,), summary, "mm")
        assert score_record(card)["cases"]["x"]["labels"]["a"]["voxels_apart"] == 4
        assert "voxels_apart" in [column.key for column in score_table(card).columns]
        with pytest.raises(ConfigError, match="exists already"):
            register_metric("voxels_apart", voxels_apart)
    finally:
        REGISTERED.remove("voxels_apart")
    with pytest.raises(ConfigError, match="exists already"):
        register_metric("dice", voxels_apart)
    with pytest.raises(ConfigError, match="needs a function"):
        register_metric("another", 3)  # type: ignore[arg-type]


def test_a_metric_that_gives_no_number_is_named() -> None:
    register_metric("wordy", lambda *_: "much")  # type: ignore[arg-type, return-value]
    try:
        with pytest.raises(ConfigError, match="the metric 'wordy' gave a str, expected a number"):
            score_case(np.ones((2, 2)), np.ones((2, 2)), (1.0, 1.0), {"a": 1})
    finally:
        REGISTERED.remove("wordy")
