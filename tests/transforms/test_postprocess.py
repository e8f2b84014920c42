"""Post-processing against scipy and scikit-image, whatever the memory order, the slabs and the values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes
from skimage.measure import label as skimage_label

import medunet.transforms.postprocess
from medunet.datasets.labels import LabelTable, table_from_names
from medunet.errors import ConfigError, DataError
from medunet.system.scratch import Scratch, lives_in_file
from medunet.transforms.postprocess import PostStep, component_sizes, postprocess
from medunet.volume import Volume

TABLE = table_from_names({"background": 3, "a": 0, "b": 200}, None)
BACKGROUND, A, B = 3, 0, 200


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """Label maps in any memory order, in which some labels may be missing."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.floats(0, 1))
    filled = random.random(shape) < share
    array = np.where(filled, random.choice([A, A, A, B], shape), BACKGROUND).astype(np.uint8)
    order = draw(st.permutations(range(len(shape))))
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


def applied(array: np.ndarray, *steps: PostStep, grid: Volume | None = None, rows: int = 10**9) -> np.ndarray:
    """The result; slabs of `rows` voxels or of one row."""
    labels = array[None].copy(order="K")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medunet.transforms.postprocess, "_CHUNK", rows)
        changed = postprocess(labels, grid or Volume(labels, unit="pixel"), TABLE, steps)
    assert sum(changed) >= np.count_nonzero(labels[0] != array)
    if len(steps) == 1:
        assert changed == [np.count_nonzero(labels[0] != array)]
    return labels[0]


def largest(mask: np.ndarray) -> np.ndarray:
    """All largest components, by scikit-image."""
    ids = skimage_label(mask, connectivity=mask.ndim)
    counts = np.bincount(ids.ravel())
    counts[0] = 0
    return np.isin(ids, np.flatnonzero((counts == counts.max()) & (counts > 0)))


@pytest.mark.slow
@given(maps(), st.sampled_from([1, 20, 10**9]))
def test_the_largest_component_of_a_label_stays(array: np.ndarray, rows: int) -> None:
    expected = np.where((array == A) & ~largest(array == A), BACKGROUND, array)
    np.testing.assert_array_equal(applied(array, PostStep("keep_largest", "a"), rows=rows), expected)


@pytest.mark.slow
@given(maps(), st.sampled_from([1, 20, 10**9]))
def test_the_largest_component_of_all_foreground_stays(array: np.ndarray, rows: int) -> None:
    expected = np.where(largest(array != BACKGROUND), array, BACKGROUND)
    np.testing.assert_array_equal(applied(array, PostStep("keep_largest"), rows=rows), expected)


@pytest.mark.slow
@given(maps(), st.integers(1, 8), st.sampled_from([1, 20, 10**9]))
def test_small_components_go_as_in_scikit_image(array: np.ndarray, least: int, rows: int) -> None:
    ids = skimage_label(array == A, connectivity=array.ndim)
    kept = np.bincount(ids.ravel())[ids] >= least
    expected = np.where((array == A) & ~kept, BACKGROUND, array)
    np.testing.assert_array_equal(applied(array, PostStep("remove_small", "a", least), rows=rows), expected)


@pytest.mark.slow
@settings(max_examples=300)
@given(maps(), st.sampled_from([1, 20, 10**9]))
def test_holes_are_filled_as_in_scipy_and_other_labels_stay(array: np.ndarray, rows: int) -> None:
    expected = np.where(binary_fill_holes(array == A) & (array == BACKGROUND), A, array)
    np.testing.assert_array_equal(applied(array, PostStep("fill_holes", "a"), rows=rows), expected)


@pytest.mark.slow
@given(maps())
def test_sizes_of_components(array: np.ndarray) -> None:
    ids = skimage_label(array == A, connectivity=array.ndim)
    assert sorted(component_sizes(array == A)) == sorted(np.bincount(ids.ravel())[1:])


def ring(shape: tuple[int, ...] = (9, 9, 9)) -> np.ndarray:
    """A hollow cube of a, with a voxel of b in its cavity, and a speck of a and one of b outside."""
    array = np.full(shape, BACKGROUND, dtype=np.uint8)
    array[1:6, 1:6, 1:6] = A
    array[2:5, 2:5, 2:5] = BACKGROUND
    array[3, 3, 3] = B
    array[8, 8, 8], array[8, 0, 0] = A, B
    return array


def test_steps_follow_each_other_and_keep_to_their_label() -> None:
    result = applied(ring(), PostStep("keep_largest", "a"), PostStep("fill_holes", "a"))
    assert np.count_nonzero(result == A) == 125 - 1 and result[8, 8, 8] == BACKGROUND
    assert result[3, 3, 3] == B and result[8, 0, 0] == B


def test_sizes_are_in_the_units_of_the_scan_whatever_the_step_counts_in() -> None:
    array = ring()
    for unit, edge in (("mm", 0.5), ("um", 500.0), ("nm", 500_000.0)):
        grid = Volume(array[None], np.diag([edge, edge, 2 * edge, 1]), unit)
        # One voxel is a quarter of a cubic millimetre: exactly that stays, more goes.
        assert applied(array, PostStep("remove_small", "a", 0.25, "mm"), grid=grid)[8, 8, 8] == A
        assert applied(array, PostStep("remove_small", "a", 0.26, "mm"), grid=grid)[8, 8, 8] == BACKGROUND
        assert applied(array, PostStep("remove_small", "a", 0.25e9, "um"), grid=grid)[8, 8, 8] == A
        assert applied(array, PostStep("remove_small", "a", 0.26e9, "um"), grid=grid)[8, 8, 8] == BACKGROUND


@pytest.mark.parametrize(("unit", "grid"), [("mm", "pixel"), ("pixel", "mm")])
def test_a_size_without_a_common_unit_is_one_error(unit: str, grid: str) -> None:
    with pytest.raises(DataError, match="say --no-postprocess"):
        applied(ring(), PostStep("remove_small", "a", 2, unit), grid=Volume(ring()[None], unit=grid))


@pytest.mark.parametrize("label", ["background", "c"])
def test_a_label_that_is_none_is_one_error(label: str) -> None:
    with pytest.raises(DataError, match="the labels are"):
        applied(ring(), PostStep("keep_largest", label))


def test_without_background_nothing_can_be_removed() -> None:
    table = LabelTable(("a", "b"), (0, 1))
    with pytest.raises(DataError, match="there is no background"):
        postprocess(np.zeros((1, 3, 3), np.uint8), Volume(np.zeros((1, 3, 3))), table, [PostStep("keep_largest", "b")])


@pytest.mark.parametrize(
    "step",
    [
        {"action": "remove_small", "label": "a"},
        {"action": "remove_small", "label": "a", "size": 0},
        {"action": "keep_largest", "label": "a", "size": 4},
        {"action": "fill_holes"},
        {"action": "keep_largest", "unit": "inch"},
    ],
)
def test_steps_that_cannot_be(step: dict) -> None:
    with pytest.raises(ConfigError):
        PostStep(**step)


def test_steps_in_words() -> None:
    assert PostStep("remove_small", "a", 12.5, "um").describe(2) == "remove components of a below 12.5 µm²"
    assert PostStep("remove_small", "a", 12.5).describe(3) == "remove components of a below 12.5 voxels"
    assert PostStep("keep_largest").describe() == "keep the largest component of all foreground together"


@pytest.mark.slow
def test_an_array_in_a_file_is_changed_there_and_little_of_it_is_held(tmp_path: Path) -> None:
    import tracemalloc

    scratch = Scratch(tmp_path, limit=1)
    labels = scratch((1, 256, 256, 256), np.uint8).transpose(0, 3, 2, 1)
    labels[...] = BACKGROUND
    labels[0, 10:250, 10:250, 10:250] = A
    labels[0, 100, 100, 50:200] = BACKGROUND
    labels[0, 2, 2, 2] = A
    assert lives_in_file(labels)
    tracemalloc.start()
    steps = [PostStep("keep_largest", "a"), PostStep("fill_holes", "a")]
    changed = postprocess(labels, Volume(labels, unit="pixel"), TABLE, steps)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert changed == [1, 150] and labels[0, 2, 2, 2] == BACKGROUND and labels[0, 100, 100, 120] == A
    assert held < 5 * labels.nbytes, "the whole would need that much: a mask and a number of four bytes for each voxel"
    assert held < 100 * 2**20
