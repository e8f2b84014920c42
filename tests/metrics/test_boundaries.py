"""V_rand and V_info against pairs counted one by one, Fiji's own numbers, scikit-image, and what must not matter."""

from __future__ import annotations

from math import isnan, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, variation_of_information

from medunet.metrics.boundaries import CUTS, cell_ids, compare_partitions, flooded_ids, score_boundaries

TRUTH = """
....#......#....
....#......#....
....#......#....
....#.....##....
#####.....#.....
....#....##.....
....######......
....#...........
....#...........
....#...........
"""
GUESS = """
...##......#....
...##.....##....
....##....#.....
....###..##.....
######...#......
....##..###.....
....#######.....
............##..
....##......##..
...##...........
"""
FIJI_LINES = """
....#......#....
....#......#....
.....#....#.....
.....#....#.....
#####....#......
.....#...#......
......###.......
................
................
................
"""
FIJI = (
    0.6835057821059036,
    0.9508890770533446,
    0.7953257790368271,
    0.7170526381630856,
    0.8428311146306423,
    0.7748709135401235,
)
"""Merge, split and F of Rand, then of information, and the lines above: from the classes RandError,
VariationOfInformation and WatershedTransform2D of Fiji's Trainable_Segmentation, run on these maps."""


def drawn(picture: str) -> np.ndarray:
    return np.array([[letter == "." for letter in line] for line in picture.split()])


def test_fijis_numbers_and_lines() -> None:
    prediction = flooded_ids(drawn(GUESS))
    assert np.array_equal(prediction > 0, drawn(FIJI_LINES))
    found = compare_partitions(prediction, cell_ids(drawn(TRUTH)))
    numbers = (found.rand_merge, found.rand_split, found.v_rand, found.info_merge, found.info_split, found.v_info)
    assert numbers == pytest.approx(FIJI, abs=1e-12)


SEGMENTS = st.tuples(
    arrays(np.int64, (4, 5), elements=st.integers(0, 3)), arrays(np.int64, (4, 5), elements=st.integers(0, 3))
)


def pairs_slowly(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Split and merge scores from all ordered pairs of reference pixels, a pixel with itself included."""
    inside = [(t, s, n) for n, (t, s) in enumerate(zip(reference.ravel(), prediction.ravel(), strict=True)) if t]
    same_both = same_reference = same_prediction = 0
    for t, s, n in inside:
        for u, v, m in inside:
            together = n == m or (s == v and s != 0)
            same_reference += t == u
            same_prediction += together
            same_both += t == u and together
    return same_both / same_reference, same_both / same_prediction


def information_slowly(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Mutual information, H(S) and H(T) in nats, with dictionaries."""
    inside = [(int(t), int(s) or -n - 1) for n, (t, s) in enumerate(
        zip(reference.ravel(), prediction.ravel(), strict=True)) if t]  # fmt: skip

    def entropy(values: list[object]) -> float:
        shares = [values.count(value) / len(values) for value in set(values)]
        return -sum(share * log(share) for share in shares)

    joint, t, s = entropy(list(inside)), entropy([t for t, _ in inside]), entropy([s for _, s in inside])
    return t + s - joint, s, t


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SEGMENTS)
def test_agrees_with_pairs_counted_one_by_one(maps: tuple[np.ndarray, np.ndarray]) -> None:
    found = compare_partitions(*maps)
    if not maps[1].any():
        assert isnan(found.v_rand) and isnan(found.v_info)
        return
    assert (found.rand_split, found.rand_merge) == pytest.approx(pairs_slowly(*maps))
    mutual, of_prediction, of_reference = information_slowly(*maps)
    assert found.info_split == pytest.approx(mutual / of_prediction if of_prediction > 1e-12 else 1.0, abs=1e-9)
    assert found.info_merge == pytest.approx(mutual / of_reference if of_reference > 1e-12 else 1.0, abs=1e-9)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(SEGMENTS)
def test_scikit_image_counts_unordered_pairs_and_bits(maps: tuple[np.ndarray, np.ndarray]) -> None:
    """Without predicted border its Rand scores are ours once a pixel's pair with itself is taken off."""
    prediction, reference = maps[0] + 1, maps[1]
    inside = reference > 0
    pixels = np.count_nonzero(inside)
    if pixels < 2:
        return
    found = compare_partitions(prediction, reference)
    with np.errstate(invalid="ignore", divide="ignore"):  # it divides by pairs that there may not be
        _, precision, recall = adapted_rand_error(reference, prediction, ignore_labels=(0,))
    of_reference, of_prediction = (int((np.bincount(ids[inside]) ** 2).sum()) for ids in (reference, prediction))
    both = found.rand_split * of_reference
    assert both == pytest.approx(found.rand_merge * of_prediction)
    # What it calls precision divides by the reference's pairs, its recall by the prediction's.
    for theirs, pairs in ((precision, of_reference), (recall, of_prediction)):
        if pairs > pixels:
            assert theirs == pytest.approx((both - pixels) / (pairs - pixels), abs=1e-9)
    split, merge = variation_of_information(reference[inside], prediction[inside])
    _, s, t = information_slowly(prediction, reference)
    for ours, lost, entropy in ((found.info_split, split, s / log(2)), (found.info_merge, merge, t / log(2))):
        if entropy > 1e-9:
            assert ours == pytest.approx(1 - lost / entropy, abs=1e-9)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(arrays(np.int64, (4, 5), elements=st.integers(1, 3)), arrays(np.int64, (4, 5), elements=st.integers(1, 3)))
def test_sides_change_split_into_merge(one: np.ndarray, other: np.ndarray) -> None:
    there, back = compare_partitions(one, other), compare_partitions(other, one)
    assert (there.rand_split, there.info_split) == pytest.approx((back.rand_merge, back.info_merge))
    renamed = compare_partitions(np.array([0, 70, 9, 4])[one], other)
    assert renamed.v_rand == pytest.approx(there.v_rand) and renamed.v_info == pytest.approx(there.v_info)


def test_two_cells_run_together_by_hand() -> None:
    """Two cells of 8 pixels under one segment: nothing split, and half of all pairs belong apart."""
    reference = np.repeat([[1, 1, 0, 2, 2]], 4, axis=0)
    found = compare_partitions(np.ones((4, 5), int), reference)
    assert (found.rand_split, found.rand_merge, found.v_rand) == pytest.approx((1.0, 0.5, 2 / 3))
    assert found.info_merge == 0.0 and found.v_info == 0.0
    quarters = compare_partitions(np.arange(20).reshape(4, 5) // 10 + 1, reference)
    assert (quarters.rand_split, quarters.info_split) == pytest.approx((0.5, 0.0))


def test_a_border_inside_a_cell_costs_single_pixels() -> None:
    """One cell of 10 pixels, one of them predicted as border: (81 + 1) / 100 of the pairs stay together."""
    prediction = np.ones((1, 10), int)
    prediction[0, 4] = 0
    found = compare_partitions(prediction, np.ones((1, 10), int))
    assert (found.rand_split, found.rand_merge) == pytest.approx((0.82, 1.0))
    assert found.v_info == 0.0 and compare_partitions(np.ones((1, 10), int), np.ones((1, 10), int)).v_info == 1.0


def test_thinning_keeps_partitions_and_drops_lines_that_part_nothing() -> None:
    wide = drawn("........ ...##... ...##... ...##... ........")
    assert (flooded_ids(wide) == 1).all(), "an island of border inside one cell is no border"
    parting = drawn("...##... ...##... ...##...")
    thin = flooded_ids(parting)
    assert ((thin == 0).sum(axis=1) == 1).all() and (thin[:, 0] != thin[:, -1]).all()
    assert (flooded_ids(np.zeros((3, 4), bool)) == 1).all() and (flooded_ids(np.ones((3, 4), bool)) == 1).all()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(arrays(bool, (7, 8)))
def test_flooding_keeps_cells_and_leaves_lines_only_between_them(cells: np.ndarray) -> None:
    flooded = flooded_ids(cells)
    if not cells.any():
        return
    assert np.array_equal(flooded[cells], cell_ids(cells)[cells]) and flooded.min() >= 0
    for axis in (0, 1):
        first, second = (
            np.take(flooded, range(flooded.shape[axis] - 1), axis),
            np.take(flooded, range(1, flooded.shape[axis]), axis),
        )
        both = (first > 0) & (second > 0)
        assert (first[both] == second[both]).all(), "two cells must not touch across a face"


def test_diagonal_gaps_do_not_join_cells() -> None:
    assert cell_ids(drawn(".# #.")).max() == 2


@settings(max_examples=20, deadline=None)
@given(arrays(bool, (6, 7)))
def test_a_binary_map_is_perfect_for_itself_when_its_borders_are_thin(cells: np.ndarray) -> None:
    """The reference is not thinned, but its own border does not count; so nothing but the cells is compared."""
    found = score_boundaries(cells, cells)
    if cells.any():
        assert found.v_rand == pytest.approx(1.0) and found.v_info == pytest.approx(1.0)
        assert found.pixel_error == 0.0 and found.sections == 1
    else:
        assert isnan(found.v_rand) and found.sections == 0
    assert found.plain_pixel_error == 0.0


def test_the_best_threshold_over_all_sections_is_taken_and_pixels_are_pooled() -> None:
    truth = np.stack([drawn(TRUTH), drawn(TRUTH)], axis=-1)
    probability = np.where(truth, 0.75, 0.35)
    found = score_boundaries(probability, truth)
    assert found.sections == 2 and found.v_rand == pytest.approx(1.0) and found.rand.threshold == 0.4
    assert found.pixel_error == 0.0 and found.plain_pixel_error == 0.0
    assert len(found.sums) == len(CUTS)
    apart = score_boundaries(probability[..., 0], truth[..., 0]) + score_boundaries(drawn(GUESS), truth[..., 1])
    mean = (1.0 + score_boundaries(drawn(GUESS), truth[..., 1]).v_rand) / 2
    assert apart.v_rand == pytest.approx(mean)


def test_pixel_errors_by_hand() -> None:
    """9 cell pixels, of which the map calls 8 cell, and 1 border pixel that it calls cell: F1 = 16 / 18."""
    truth = np.array([[True] * 9 + [False]])
    guess = np.array([[False] + [True] * 9])
    found = score_boundaries(guess, truth)
    assert found.pixel_error == pytest.approx(1 - 16 / 18) and found.plain_pixel_error == pytest.approx(0.2)


def test_ignored_pixels_do_not_count() -> None:
    truth, guess = drawn(TRUTH), drawn(TRUTH)
    ignore = np.zeros(truth.shape, bool)
    ignore[:, :4] = True
    guess[2:4, 1:3] = False
    guess[4, :4] = True
    found = score_boundaries(guess, truth, ignore)
    assert found.v_rand == pytest.approx(1.0) and found.plain_pixel_error == found.pixel_error == 0.0
    assert score_boundaries(guess, truth).v_rand < 0.95
    assert isnan(score_boundaries(guess, truth, np.ones_like(ignore)).plain_pixel_error)
    with pytest.raises(ValueError, match="must fit"):
        score_boundaries(guess, truth[1:])


@pytest.mark.data
def test_a_real_section_against_itself_and_against_lost_membranes(real_data) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    cells = np.array(Image.open(real_data / "isbi2012_em" / "labels" / "slice_05.png"))[:256, :256] > 0
    assert score_boundaries(cells, cells).v_info == pytest.approx(1.0)
    lost = cells.copy()
    lost[100:140] = True
    found = score_boundaries(lost, cells)
    assert found.rand.merge < found.rand.split and found.v_rand < 0.95
