"""Object scores against slow versions written from the definitions, examples by hand, and what must not matter."""

from __future__ import annotations

from itertools import permutations
from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from medunet.metrics import objects
from medunet.metrics.contingency import contingency
from medunet.metrics.objects import THRESHOLDS, Matches, ObjectCounts, count_objects, object_errors

SMALL = st.integers(0, 4)
ID_MAPS = st.tuples(arrays(np.int64, (5, 6), elements=SMALL), arrays(np.int64, (5, 6), elements=SMALL))


def boxes(shape: tuple[int, ...], *places: tuple[slice, ...]) -> np.ndarray:
    ids = np.zeros(shape, np.int32)
    for number, place in enumerate(places, start=1):
        ids[place] = number
    return ids


def overlap(a: np.ndarray, i: int, b: np.ndarray, j: int) -> int:
    return sum(1 for x, y in zip(a.ravel(), b.ravel(), strict=True) if x == i and y == j)


def objects_of(ids: np.ndarray) -> list[int]:
    return sorted(set(ids.ravel().tolist()) - {0})


def iou_matrix(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`(reference, prediction)`, voxel by voxel."""
    rows = []
    for i in objects_of(reference):
        row = []
        for j in objects_of(prediction):
            both = overlap(reference, i, prediction, j)
            row.append(both / (int((reference == i).sum()) + int((prediction == j).sum()) - both))
        rows.append(row)
    return np.array(rows).reshape(len(objects_of(reference)), len(objects_of(prediction)))


def seg_slowly(prediction: np.ndarray, reference: np.ndarray) -> float:
    total = 0.0
    for i in objects_of(reference):
        size = int((reference == i).sum())
        for j in objects_of(prediction):
            both = overlap(reference, i, prediction, j)
            if both > 0.5 * size:
                total += both / (size + int((prediction == j).sum()) - both)
    return total / len(objects_of(reference))


def det_slowly(prediction: np.ndarray, reference: np.ndarray) -> float:
    covers: dict[int, int] = dict.fromkeys(objects_of(prediction), 0)
    missed = 0
    for i in objects_of(reference):
        found = [j for j in covers if overlap(reference, i, prediction, j) > 0.5 * int((reference == i).sum())]
        assert len(found) <= 1
        missed += not found
        for j in found:
            covers[j] += 1
    cost = 10 * missed + sum(1 if n == 0 else 5 * (n - 1) for n in covers.values())
    whole = 10 * len(objects_of(reference))
    return 1 - min(cost, whole) / whole


def true_positives_like_stardist(iou: np.ndarray, threshold: float) -> int:
    """The dense cost matrix of StarDist's documentation, solved as it does."""
    pairs = min(iou.shape)
    if pairs == 0 or not (iou >= threshold).any():
        return 0
    rows, columns = linear_sum_assignment(-(iou >= threshold).astype(float) - iou / (2 * pairs))
    return int((iou[rows, columns] >= threshold).sum())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(ID_MAPS)
def test_agrees_with_the_definitions_written_out(maps: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, reference = maps
    counts, iou = count_objects(prediction, reference), iou_matrix(prediction, reference)
    assert (counts.reference, counts.prediction) == iou.shape
    for threshold, match in zip(THRESHOLDS, counts.matches, strict=True):
        hits = true_positives_like_stardist(iou, threshold)
        expected = (hits, counts.prediction - hits, counts.reference - hits)
        assert (match.true_positives, match.false_positives, match.false_negatives) == expected
    above = iou[iou > 0.5]
    if counts.reference + counts.prediction:
        wanted = above.sum() / (counts.reference / 2 + counts.prediction / 2)
        assert counts.pq == pytest.approx(wanted) and counts.sq * counts.rq == pytest.approx(wanted)
    if counts.reference:
        assert counts.seg == pytest.approx(seg_slowly(prediction, reference))
        assert counts.det == pytest.approx(det_slowly(prediction, reference))


@settings(max_examples=60, deadline=None)
@given(ID_MAPS, st.sampled_from([0.1, 0.25, 0.4, 0.5]))
def test_low_thresholds_find_the_best_of_all_matchings(maps: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    iou = iou_matrix(*maps)
    iou = iou if iou.shape[0] <= iou.shape[1] else iou.T
    best = (0, 0.0)
    for chosen in permutations(range(iou.shape[1]), iou.shape[0]):
        found = [iou[i, j] for i, j in enumerate(chosen) if iou[i, j] >= threshold]
        best = max(best, (len(found), round(sum(found), 9)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "THRESHOLDS", (threshold,))
        (match,) = count_objects(*maps).matches
    assert (match.true_positives, match.iou_sum) == (best[0], pytest.approx(best[1]))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(ID_MAPS, st.permutations([17, 3, 70_000, 255, 1]))
def test_ids_and_the_order_of_voxels_do_not_matter(maps: tuple[np.ndarray, np.ndarray], names: list[int]) -> None:
    prediction, reference = maps
    renamed = np.array([0, *names])[prediction], np.array([0, *names[::-1]])[reference]
    turned = prediction[::-1].T, reference[::-1].T
    first, second, third = count_objects(prediction, reference), count_objects(*renamed), count_objects(*turned)
    assert scores(second) == pytest.approx(scores(first), nan_ok=True)
    assert scores(third) == pytest.approx(scores(first), nan_ok=True)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(ID_MAPS)
def test_matching_and_pq_are_symmetric_and_errors_change_their_names(maps: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = count_objects(*maps), count_objects(*maps[::-1])
    assert one.pq == pytest.approx(other.pq, nan_ok=True)
    for a, b in zip(one.matches, other.matches, strict=True):
        assert (a.true_positives, a.false_positives) == (b.true_positives, b.false_negatives)
    assert (one.missed, one.merged, one.invented, one.split) == (
        other.invented,
        other.split,
        other.missed,
        other.merged,
    )


@pytest.mark.slow
@given(arrays(np.uint16, (4, 5, 3), elements=st.integers(0, 3)))
def test_a_map_is_perfect_for_itself(ids: np.ndarray) -> None:
    counts = count_objects(ids, ids)
    perfect = 1.0 if ids.any() else float("nan")
    keys = ("seg", "det", "ap50", "ap75", "mean_ap", "pq", "sq", "rq", "f1", "precision", "recall")
    assert [getattr(counts, key) for key in keys] == pytest.approx([perfect] * len(keys), nan_ok=True)
    assert counts.missed == counts.invented == counts.merged == counts.split == 0


def scores(counts: ObjectCounts) -> list[float]:
    kinds = (counts.missed, counts.invented, counts.merged, counts.split)
    return [counts.seg, counts.det, counts.mean_ap, counts.pq, *map(float, kinds)]


def test_a_shifted_square_by_hand() -> None:
    """4x4 squares one column apart share 12 of 20 pixels: IoU 0.6."""
    counts = count_objects(boxes((8, 9), (slice(0, 4), slice(1, 5))), boxes((8, 9), (slice(0, 4), slice(0, 4))))
    assert counts.seg == counts.pq == counts.sq == 0.6 and counts.ap50 == 1.0 and counts.ap75 == 0.0
    assert counts.mean_ap == pytest.approx(0.3), "0.5, 0.55 and 0.6 of ten thresholds"
    assert counts.matches[2].mean_true_score == counts.matches[2].mean_matched_score == 0.6


def test_two_merged_cells_by_hand() -> None:
    """Sizes 12 and 8 under one prediction of 20: J = 12/20 and 8/20; one split operation costs 5 of 20."""
    reference = boxes((4, 5), (slice(None), slice(0, 3)), (slice(None), slice(3, 5)))
    counts = count_objects(np.ones((4, 5), int), reference)
    assert counts.seg == pytest.approx((0.6 + 0.4) / 2) and counts.det == 1 - 5 / 20
    assert (counts.merged, counts.missed, counts.invented, counts.split) == (1, 0, 0, 0)
    assert counts.precision == 1.0 and counts.recall == 0.5 and counts.ap50 == 0.5 and counts.pq == 0.6 / 1.5


def test_a_cell_in_three_pieces_by_hand() -> None:
    """Pieces of 12, 4 and 4 pixels: the first covers the cell with J 0.6, two are false positives."""
    pieces = boxes((4, 5), (slice(None), slice(0, 3)), (slice(None), slice(3, 4)), (slice(None), slice(4, 5)))
    counts = count_objects(pieces, np.ones((4, 5), int))
    assert counts.seg == pytest.approx(0.6) and counts.det == 1 - 2 / 10
    assert (counts.split, counts.missed, counts.invented, counts.merged) == (1, 0, 0, 0)


def test_exactly_half_is_no_match_for_the_challenge_and_for_pq_but_is_one_for_ap() -> None:
    counts = count_objects(boxes((2, 4), (slice(None), slice(0, 2))), np.ones((2, 4), int))
    assert counts.seg == 0.0 and counts.det == 0.0 and counts.pq == 0.0 and counts.ap50 == 1.0


def test_two_halves_compete_for_one_cell() -> None:
    halves = boxes((2, 4), (slice(None), slice(0, 2)), (slice(None), slice(2, 4)))
    match = count_objects(halves, np.ones((2, 4), int)).matches[0]
    assert (match.true_positives, match.false_positives, match.false_negatives) == (1, 1, 0)


def test_missed_and_invented_are_named() -> None:
    reference = boxes((6, 9), (slice(0, 2), slice(0, 3)), (slice(4, 6), slice(0, 3))) * 7
    prediction = boxes((6, 9), (slice(0, 2), slice(0, 3)), (slice(2, 4), slice(6, 9)))
    errors = object_errors(prediction, reference)
    assert errors.missed.tolist() == [14] and errors.invented.tolist() == [2] and errors.partner == {1: 7}
    assert errors.merged.size == errors.split.size == 0


def test_empty_sides() -> None:
    nothing, something = np.zeros((4, 4), np.uint8), boxes((4, 4), (slice(0, 2), slice(0, 2)))
    both, invented, missed = (count_objects(*sides) for sides in (
        (nothing, nothing), (something, nothing), (nothing, something)))  # fmt: skip
    for key in ("seg", "det", "ap50", "mean_ap", "pq", "sq", "rq", "f1", "precision", "recall"):
        assert isnan(getattr(both, key)), key
    for key in ("ap50", "mean_ap", "pq", "f1", "precision", "recall"):
        assert getattr(invented, key) == getattr(missed, key) == 0.0, key
    assert isnan(invented.seg) and isnan(invented.det) and missed.seg == missed.det == 0.0
    assert (invented.invented, missed.missed) == (1, 1)
    assert isnan(count_objects(np.zeros((0, 3), int), np.zeros((0, 3), int)).pq)


def test_pooled_counts_are_those_of_the_images_side_by_side(rng: np.random.Generator) -> None:
    first, second = (tuple(rng.integers(0, 4, (2, 8, 8))) for _ in range(2))
    apart = count_objects(*first) + count_objects(*second)
    beside = [np.concatenate([a, np.where(b > 0, b + 10, 0)]) for a, b in zip(first, second, strict=True)]
    together = count_objects(*beside)
    assert scores(apart) == pytest.approx(scores(together)) and apart.matches[0] == together.matches[0]


def test_ignored_voxels_take_no_side_and_nobody_is_blamed_for_what_lies_there() -> None:
    reference = boxes((4, 12), (slice(None), slice(0, 4)))
    ignore = np.zeros((4, 12), bool)
    ignore[:, 6:] = True
    hidden = boxes((4, 12), (slice(None), slice(0, 4)), (slice(None), slice(8, 12)))
    counts = count_objects(hidden, reference, ignore)
    assert counts.unjudged == 1 and counts.prediction == 1 and counts.ap50 == counts.det == counts.pq == 1.0
    mostly = boxes((4, 12), (slice(None), slice(0, 4)), (slice(None), slice(5, 9)))
    counts = count_objects(mostly, reference, ignore)
    assert counts.unjudged == 1 and counts.invented == counts.matches[0].false_positives == 0
    halfway = boxes((4, 12), (slice(None), slice(0, 4)), (slice(None), slice(4, 8)))
    counts = count_objects(halfway, reference, ignore)
    assert counts.unjudged == 0 and counts.invented == counts.matches[0].false_positives == 1


def test_a_cell_cut_by_the_edge_of_the_annotation_is_compared_inside_it() -> None:
    """Two of five columns are annotated: there the prediction is right, so it is a match for all its hidden part."""
    ids, ignore = np.ones((4, 5), int), np.zeros((4, 5), bool)
    ignore[:, 2:] = True
    counts = count_objects(ids, np.where(ignore, 255, ids), ignore)
    assert counts.seg == counts.pq == counts.mean_ap == 1.0 and counts.unjudged == 0 and counts.prediction == 1


@settings(max_examples=30, deadline=None)
@given(ID_MAPS, arrays(bool, (5, 6)))
def test_what_the_reference_holds_on_ignored_voxels_does_not_matter(
    maps: tuple[np.ndarray, np.ndarray], ignore: np.ndarray
) -> None:
    prediction, reference = maps
    assert count_objects(prediction, np.where(ignore, 9, reference), ignore) == count_objects(
        prediction, reference, ignore
    )


def test_ids_of_any_size_and_type_are_counted_alike(rng: np.random.Generator) -> None:
    prediction, reference = rng.integers(0, 5, (2, 9, 9))
    expected = count_objects(prediction, reference)
    far = np.array([0, 2**40, 5, 2**33, 2**62 + 1])
    assert scores(count_objects(far[prediction], far[reference])) == scores(expected)
    for kind in (np.uint8, np.uint32, np.uint64, np.int16):
        assert count_objects(prediction.astype(kind), reference.astype(kind)) == expected
    assert count_objects(prediction > 0, reference > 0) == count_objects(
        (prediction > 0).astype(int), (reference > 0).astype(int)
    )


def test_a_table_of_many_objects_is_sorted_instead_of_counted() -> None:
    """5,000 by 5,000 ids are more bins than are counted into."""
    ids = np.arange(1, 5001)
    table = contingency(ids, ids[::-1])
    assert (table.shared == 1).all() and (table.rows + table.columns == 4999).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must fit"):
        count_objects(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="must fit"):
        count_objects(np.zeros((2, 3), int), np.zeros((2, 3), int), np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="negative"):
        count_objects(np.array([-1]), np.array([1]))
    assert isnan(Matches().f1)
