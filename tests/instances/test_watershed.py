"""Objects of one component: seeds, floods, necks, gaps and holes, on arrays small enough to be drawn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

from medunet.errors import ConfigError
from medunet.instances.watershed import (
    ObjectRule,
    _flooded,
    _sweep,
    connected,
    cut_by_depth,
    cut_by_distance,
    cut_by_levels,
    holes_of,
    without_gaps,
)


def drawn(*rows: str) -> np.ndarray:
    return np.array([[0 if letter == "." else int(letter) for letter in row] for row in rows])


def test_two_cores_share_the_rim_between_them_at_its_ridge() -> None:
    levels = drawn("1222111221").astype(np.uint8)
    elevation = drawn("5000169004").astype(np.float32)
    numbers, count = cut_by_levels(levels, elevation)
    assert count == 2
    np.testing.assert_array_equal(numbers, drawn("1111112222"))


def test_a_component_without_any_core_is_one_object() -> None:
    numbers, count = cut_by_levels(drawn("011110").astype(np.uint8), np.zeros((1, 6), np.float32))
    assert count == 1
    np.testing.assert_array_equal(numbers, drawn("011110"))


def test_a_small_object_whose_innermost_core_was_missed_is_not_lost_to_its_neighbour() -> None:
    levels = drawn(
        "1111111",
        "1232121",
        "1111111",
    ).astype(np.uint8)
    numbers, count = cut_by_levels(levels, -levels.astype(np.float32))
    assert count == 2
    assert numbers[1, 1] != numbers[1, 5]


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.sampled_from([(9, 11), (5, 6, 4)]))
@settings(max_examples=60, deadline=None)
def test_an_object_is_the_same_whatever_lies_around_it(seed: int, margin: int, shape: tuple[int, ...]) -> None:
    """With few different elevations, ties are everywhere."""
    random = np.random.default_rng(seed)
    levels = random.integers(1, 3, shape).astype(np.uint8)
    elevation = random.integers(0, 3, shape).astype(np.float32)
    alone, count = cut_by_levels(levels, elevation)
    around = [(margin + 1, margin)] * len(shape)
    again, same = cut_by_levels(np.pad(levels, around), np.pad(elevation, around, constant_values=-7))
    assert count == same
    np.testing.assert_array_equal(np.pad(alone, around), again)


def test_floods_are_those_of_scikit_image_where_seeds_are_the_lowest() -> None:
    """There the order of the seeds is the only thing that was added, and a single voxel each has none."""
    random = np.random.default_rng(5)
    levels = np.ones((30, 40), np.uint8)
    places = [(3, 4), (20, 9), (12, 30), (27, 36)]
    elevation = random.random(levels.shape).astype(np.float32)
    for number, place in enumerate(places):
        levels[place], elevation[place] = 2, number / 10 - 1
    numbers, count = cut_by_levels(levels, elevation)
    seeds, _ = connected(levels == 2)
    assert count == len(places)
    np.testing.assert_array_equal(numbers, watershed(elevation, seeds, connectivity=2))


def separate_basins(elevation: np.ndarray, mask: np.ndarray, depth: float) -> int:
    """The oracle: water rises voxel by voxel; where two lakes meet, the shallower one counts if it is deep enough."""
    order = sorted((float(elevation[place]), place) for place in map(tuple, np.argwhere(mask)))
    lake: dict[tuple[int, ...], tuple[int, ...]] = {}
    bottom: dict[tuple[int, ...], float] = {}

    def find(place: tuple[int, ...]) -> tuple[int, ...]:
        while lake[place] != place:
            place = lake[place]
        return place

    count = 0
    for level, place in order:
        lake[place], bottom[place] = place, level
        for step in np.ndindex(*(3,) * mask.ndim):
            other = tuple(p + s - 1 for p, s in zip(place, step, strict=True))
            if other in lake and find(other) != find(place):
                deep, shallow = sorted((find(other), find(place)), key=lambda root: bottom[root])
                count += level - bottom[shallow] > depth
                lake[shallow] = deep
    return count + 1


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(9, 11), (1, 20), (5, 6, 4)]),
    heights=st.integers(1, 9),
    depth=st.sampled_from([0.5, 1.0, 2.0, 3.5]),
)
@settings(max_examples=80, deadline=None)
def test_basins_are_objects_where_the_ridge_between_them_is_high_enough(
    seed: int, shape: tuple[int, ...], heights: int, depth: float
) -> None:
    random = np.random.default_rng(seed)
    mask, _ = connected(random.random(shape) < 0.8)
    mask = mask == np.bincount(mask[mask > 0]).argmax() if mask.any() else mask > -1
    elevation = random.integers(-5, -5 + heights, shape).astype(np.float32)
    numbers, count = cut_by_depth(mask, elevation, depth)
    assert count == separate_basins(elevation, mask, depth)
    assert set(np.unique(numbers[mask])) == set(range(1, count + 1)) and not numbers[~mask].any()
    # Nothing outside matters.
    other, same = cut_by_depth(mask, np.where(mask, elevation, random.normal(0, 50, shape)), depth)
    np.testing.assert_array_equal(numbers, other)
    assert count == same


def discs(distance: int, radius: int = 8) -> np.ndarray:
    y, x = np.indices((2 * radius + 5, 2 * radius + 5 + distance))
    left, right = radius + 2, radius + 2 + distance
    return np.minimum((x - left) ** 2, (x - right) ** 2) + (y - left) ** 2 <= radius**2


@pytest.mark.parametrize(("distance", "depth", "expected"), [(12, 1.0, 2), (12, 4.0, 1), (3, 1.0, 1), (0, 0.5, 1)])
def test_a_neck_cuts_if_it_is_shallower_than_both_parts_by_the_depth(
    distance: int, depth: float, expected: int
) -> None:
    mask = discs(distance)
    numbers, count = cut_by_distance(mask, depth, (1.0, 1.0))
    assert count == expected
    np.testing.assert_array_equal(numbers > 0, mask)
    if count == 2:
        assert abs((numbers == 1).sum() - (numbers == 2).sum()) <= 0.1 * mask.sum()


def test_a_mask_that_fills_the_scan_has_no_necks() -> None:
    numbers, count = cut_by_distance(np.ones((4, 5), bool), 1.0, (1.0, 1.0))
    assert count == 1 and (numbers == 1).all()


def test_thick_slices_are_as_deep_as_they_are_thick() -> None:
    """Two balls on top of each other, in slices of four times the pixel size."""
    z, y, x = np.indices((12, 25, 25))
    mask = np.minimum((4 * (z - 3)) ** 2, (4 * (z - 8)) ** 2) + (y - 12) ** 2 + (x - 12) ** 2 <= 11**2
    assert cut_by_distance(mask, 1.0, (4.0, 1.0, 1.0))[1] == 2
    assert cut_by_distance(mask, 1.0, (1.0, 1.0, 1.0))[1] == 1


def test_gaps_between_two_objects_close_and_outer_borders_stay() -> None:
    ids = drawn(
        ".........",
        ".111..22.",
        ".111..22.",
        ".........",
        ".........",
        ".........",
        "..333....",
    ).astype(np.int32)
    closed = drawn(
        "....12...",
        ".1111222.",
        ".1111222.",
        "....12...",
        ".........",
        ".........",
        "..333....",
    )
    np.testing.assert_array_equal(without_gaps(ids, 1), closed)


def test_touching_objects_are_given_back_what_training_took() -> None:
    """Cells of a plane cut by random seeds; each loses the voxels that have another one among their neighbours."""
    random = np.random.default_rng(3)
    seeds = np.zeros((60, 70), np.int32)
    seeds[random.integers(5, 55, 12), random.integers(5, 65, 12)] = np.arange(1, 13)
    whole = watershed(np.zeros(seeds.shape), seeds, mask=discs_of(seeds.shape))
    window = np.lib.stride_tricks.sliding_window_view(np.pad(whole, 1), (3, 3)).reshape(*whole.shape, 9)
    touching = ((window != whole[..., None]) & (window > 0)).any(axis=-1) & (whole > 0)
    taken = np.where(touching, 0, whole)
    back = without_gaps(taken, 1)
    np.testing.assert_array_equal(back[taken > 0], taken[taken > 0])
    assert touching.sum() > 300
    assert ((back == whole) & touching).sum() > 0.9 * touching.sum()
    assert ((back > 0) & (whole == 0)).sum() < 0.05 * touching.sum()


def discs_of(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(shape)
    return ((y - shape[0] / 2) / 27) ** 2 + ((x - shape[1] / 2) / 32) ** 2 <= 1


def test_gaps_wider_than_what_training_took_away_stay() -> None:
    ids = drawn("11...22").astype(np.int32)
    np.testing.assert_array_equal(without_gaps(ids, 1), ids)
    np.testing.assert_array_equal(without_gaps(ids, 2), drawn("1111222"))
    np.testing.assert_array_equal(without_gaps(drawn("11...11").astype(np.int32), 2), drawn("11...11"))


def test_holes_are_closed_by_faces_edges_and_corners() -> None:
    mask = drawn("..1..", ".1.1.", "..1..", "....1") > 0
    np.testing.assert_array_equal(np.argwhere(holes_of(mask)), [[1, 2]])


@pytest.mark.parametrize("wrong", [{"min_size": -1}, {"split": 0.0}, {"split": float("nan")}, {"split": float("inf")}])
def test_impossible_rules_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        ObjectRule(**wrong)


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 1), (9, 12), (1, 7), (6, 5, 7), (1, 8, 3), (2, 2, 2)]),
    depth=st.floats(0.01, 1.5),
    levels=st.integers(2, 12),
    kind=st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=150)
def test_planes_that_are_swept_give_the_reconstruction_of_scikit_image(
    seed: int, shape: tuple[int, ...], depth: float, levels: int, kind: type
) -> None:
    """To the last bit, for plateaus and for walls around basins."""
    random = np.random.default_rng(seed)
    ground = (random.integers(0, levels, shape) / 7).astype(kind)
    above = ground.max() + 2 * kind(depth)
    ground[random.random(shape) < 0.3] = above
    surface = np.minimum(ground + kind(depth), above)
    expected = reconstruction(surface, ground, "erosion", np.ones((3,) * len(shape)))
    _sweep(surface, ground)
    assert surface.dtype == expected.dtype == kind
    np.testing.assert_array_equal(surface, expected)


def flooded_with_whole_seeds(elevation: np.ndarray, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """As it was before the insides of seeds were left out, in float64."""
    height = np.array(elevation, dtype=np.float64)
    seeded = seeds > 0
    count = np.count_nonzero(seeded)
    height[seeded] = np.floor(height[mask].min()) - count + np.arange(count)
    return np.asarray(watershed(height, seeds, connectivity=mask.ndim, mask=mask))


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(17, 14), (8, 9, 7)]),
    share=st.sampled_from([0.02, 0.2, 0.5, 1.0]),
    levels=st.sampled_from([1, 3, 4096]),
    kind=st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=150)
def test_seeds_without_their_insides_flood_as_whole_ones(
    seed: int, shape: tuple[int, ...], share: float, levels: int, kind: type
) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(shape) < 0.9
    seeds, _ = connected(binary_dilation(random.random(shape) < share / 5, iterations=2) & mask)
    elevation = (random.integers(-levels, levels, shape) / 4096).astype(kind)
    expected = flooded_with_whole_seeds(elevation, seeds, mask)
    np.testing.assert_array_equal(_flooded(elevation, seeds, mask), expected)


@pytest.mark.slow
def test_a_cluster_takes_no_more_arrays_than_it_is_planned_for() -> None:
    """Of numpy's memory, which is all but the flood's queue."""
    x, y, z = np.indices((64, 64, 64)) / 64
    elevation = (np.sin(12 * x) * np.sin(12 * y) * np.sin(12 * z)).astype(np.float32)
    mask = np.ones(elevation.shape, bool)
    cut_by_depth(mask[:8, :8, :8], elevation[:8, :8, :8], 0.1)  # pays for imports
    tracemalloc.start()
    try:
        _, count = cut_by_depth(mask, elevation, 0.1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 10 and peak < 45 * mask.size
