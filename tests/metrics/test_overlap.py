"""Voxel counts against sets of voxel indices and hand-made masks."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from medunet.metrics.overlap import Counts, count_labels, count_overlap, pixel_accuracy

SHARES = ("dice", "iou", "precision", "recall", "volume_similarity")


def test_known_square() -> None:
    """Two 4x4 squares in a 10x10 picture that share 4x2 pixels."""
    reference, prediction = np.zeros((2, 10, 10), bool)
    reference[2:6, 2:6] = True
    prediction[2:6, 4:8] = True
    counts = count_overlap(prediction, reference)
    assert counts == Counts(true_positives=8, false_positives=8, false_negatives=8)
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (0.5, pytest.approx(1 / 3), 0.5, 0.5)
    assert counts.volume_similarity == 1.0


def test_random_masks_agree_with_sets(rng: np.random.Generator) -> None:
    """The formulas on sets of voxel indices, which share no code with boolean arrays."""
    prediction, reference = rng.random((2, 7, 6, 5)) > 0.6
    p = {tuple(i) for i in np.argwhere(prediction)}
    r = {tuple(i) for i in np.argwhere(reference)}
    counts = count_overlap(prediction, reference)
    assert counts.dice == pytest.approx(2 * len(p & r) / (len(p) + len(r)))
    assert counts.iou == pytest.approx(len(p & r) / len(p | r))
    assert counts.precision == pytest.approx(len(p & r) / len(p))
    assert counts.recall == pytest.approx(len(p & r) / len(r))
    assert counts.volume_similarity == pytest.approx(1 - abs(len(p) - len(r)) / (len(p) + len(r)))
    assert counts.relative_volume_difference == pytest.approx((len(p) - len(r)) / len(r))


@pytest.mark.parametrize("counts", [Counts(0, 0, 9), Counts(0, 9, 0)], ids=["missed", "invented"])
def test_one_side_empty_scores_zero(counts: Counts) -> None:
    assert [getattr(counts, name) for name in SHARES] == [0.0] * 5


def test_both_sides_empty_have_no_score() -> None:
    assert all(isnan(getattr(Counts(0, 0, 0), name)) for name in SHARES)


def test_relative_volume_of_a_miss_and_of_an_invention() -> None:
    assert Counts(0, 0, 9).relative_volume_difference == -1
    assert isnan(Counts(0, 9, 0).relative_volume_difference)


def test_ignored_voxels_count_on_neither_side() -> None:
    reference = np.array([[0, 1, 9], [1, 1, 9]])
    prediction = np.array([[1, 1, 1], [0, 1, 0]])
    assert count_labels(prediction, reference, {"one": 1}, ignore=9) == {"one": Counts(2, 1, 1)}
    assert count_labels(prediction, reference, {"one": 1})["one"].false_positives == 2
    assert pixel_accuracy(prediction, reference, ignore=9) == 0.5
    assert pixel_accuracy(prediction, reference) == pytest.approx(2 / 6)


def test_everything_ignored_has_no_accuracy() -> None:
    assert isnan(pixel_accuracy(np.ones((3, 3)), np.full((3, 3), 9), ignore=9))


def test_unions_of_labels_are_structures(rng: np.random.Generator) -> None:
    """The region of labels 1 and 3 is what it is where both are written as one label."""
    prediction, reference = rng.integers(0, 5, (2, 7, 6, 5))
    found = count_labels(prediction, reference, {"one": 1, "also one": (1,), "both": (1, 3)}, ignore=4)
    merged = [np.where(np.isin(labels, (1, 3)), 1, np.where(labels == 4, 4, 0)) for labels in (prediction, reference)]
    assert found["one"] == found["also one"] == count_labels(prediction, reference, {"one": 1}, ignore=4)["one"]
    assert found["both"] == count_labels(*merged, {"both": 1}, ignore=4)["both"] != found["one"]
