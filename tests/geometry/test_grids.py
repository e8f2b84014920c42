"""Orientation and resampling against nibabel, scipy and MONAI as oracles."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from medunet.geometry.boxes import Box
from medunet.geometry.grids import (
    Resampling,
    closest_ras,
    grid_distance,
    resample_nearest,
    resampled_length,
    sample_positions,
)

LENGTHS = st.integers(1, 9)
SHAPES = st.tuples(LENGTHS, LENGTHS, LENGTHS)


def resample_linear(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`(channel, *spatial)` by bi- or trilinear interpolation, one axis after another, in float32."""
    resampling = Resampling(tuple(array.shape[1:]), tuple(shape))
    return resampling.apply(array, (0,) * len(shape), Box.of_shape(shape))


def rotation(seed: int) -> np.ndarray:
    orthogonal, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return orthogonal


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), shape=SHAPES)
def test_orientation_is_nibabels_and_undo_undoes(seed: int, shape: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * np.random.default_rng(seed).uniform(0.5, 4, 3)
    array = np.random.default_rng(seed).normal(size=(2, *shape))
    orientation = closest_ras(affine)
    image = nib.Nifti1Image(np.moveaxis(array, 0, -1), affine)
    oracle = np.moveaxis(np.asarray(nib.as_closest_canonical(image).dataobj), -1, 0)
    if np.array_equal(nib.io_orientation(affine)[:, 0], np.argsort(orientation.axes)):
        # Strongly oblique axes may be assigned in two defensible ways; where both agree, voxels must too.
        np.testing.assert_array_equal(orientation.apply(array), oracle)
    np.testing.assert_array_equal(orientation.undo(orientation.apply(array)), array)


@pytest.mark.parametrize("code", ["RAS", "LPS", "LIA", "PSR", "SAL"])
def test_orthogonal_orientations_agree_with_nibabel(code: str) -> None:
    stored = nib.orientations.axcodes2ornt(tuple(code))
    affine = nib.orientations.inv_ornt_aff(stored, (4, 5, 6)) @ np.diag([2.0, 3.0, 4.0, 1.0])
    array = np.arange(120).reshape(1, 4, 5, 6)
    image = nib.Nifti1Image(array[0].astype(np.int16), affine)
    oracle = np.asarray(nib.as_closest_canonical(image).dataobj)
    np.testing.assert_array_equal(closest_ras(affine).apply(array)[0], oracle)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(source=SHAPES, target=SHAPES, seed=st.integers(0, 999))
def test_linear_resampling_is_trilinear_interpolation(source, target, seed) -> None:
    array = np.random.default_rng(seed).normal(size=(2, *source)).astype(np.float32)
    coordinates = np.meshgrid(*[sample_positions(n, m) for n, m in zip(source, target, strict=True)], indexing="ij")
    oracle = np.stack([map_coordinates(channel, coordinates, order=1, mode="nearest") for channel in array])
    np.testing.assert_allclose(resample_linear(array, target), oracle, atol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(source=SHAPES, target=SHAPES, seed=st.integers(0, 999), data=st.data())
def test_a_box_is_a_part_of_the_whole_and_needs_no_more_than_it_says(source, target, seed, data) -> None:
    array = np.random.default_rng(seed).normal(size=(2, *source)).astype(np.float32)
    starts = [data.draw(st.integers(0, n - 1)) for n in target]
    box = Box(tuple(starts), tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(starts, target, strict=True)))
    resampling = Resampling(source, target)
    needed = resampling.needs(box)
    part = array[(slice(None), *needed.slices)]
    whole = resample_linear(array, target)[(slice(None), *box.slices)]
    np.testing.assert_array_equal(resampling.apply(part, needed.start, box), whole)


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(source=LENGTHS, target=LENGTHS)
def test_rows_are_ready_as_soon_as_what_they_need_is_there(source: int, target: int) -> None:
    resampling = Resampling((source,), (target,))
    for rows in range(source + 1):
        needed = [resampling.needs(Box((row,), (row + 1,))).stop[0] for row in range(target)]
        assert resampling.ready(0, rows) == sum(stop <= rows for stop in needed)
    assert resampling.ready(0, source) == target


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(source=SHAPES, target=SHAPES, seed=st.integers(0, 999))
def test_nearest_invents_no_value_and_picks_the_nearest(source, target, seed) -> None:
    array = np.random.default_rng(seed).integers(0, 200, size=(1, *source)).astype(np.uint8)
    result = resample_nearest(array, target)
    assert result.dtype == np.uint8 and result.shape == (1, *target)
    assert set(np.unique(result)) <= set(np.unique(array))
    for index in np.ndindex(*target):
        choices = []
        for n, m, i in zip(source, target, index, strict=True):
            position = sample_positions(n, m)[i]
            distance = np.abs(np.arange(n) - position)
            choices.append(np.flatnonzero(distance <= distance.min() + 1e-9))
        assert result[(0, *index)] in array[0][np.ix_(*choices)]


def test_resampling_to_the_same_shape_is_identity(rng) -> None:
    array = rng.normal(size=(3, 5, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(resample_linear(array, (5, 6, 7)), array)
    np.testing.assert_array_equal(resample_nearest(array, (5, 6, 7)), array)


def test_resampling_does_not_shift() -> None:
    """A symmetric object stays centred, up and down (MONAI's Resized 'nearest' shifts by half a voxel)."""
    array = np.zeros((1, 20, 20, 20), dtype=np.float32)
    array[0, 6:14, 6:14, 6:14] = 1
    for target in (13, 20, 31, 40):
        for resample in (resample_linear, resample_nearest):
            result = resample(array, (target,) * 3)[0]
            centre = (np.indices(result.shape).reshape(3, -1) @ result.ravel()) / result.sum()
            np.testing.assert_allclose((centre + 0.5) / target, 0.5, atol=1e-3 if target != 13 else 0.02)


def test_resampled_length_keeps_the_extent() -> None:
    assert resampled_length(100, 0.5, 1.0) == 50
    assert resampled_length(3, 1.0, 100.0) == 1


def test_grid_distance_is_what_the_rotation_does_to_the_far_corner() -> None:
    angle = 1e-3
    rotated = np.eye(4)
    rotated[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert grid_distance((101, 1, 1), np.eye(4), rotated) == pytest.approx(0.1, rel=1e-3)
    assert grid_distance((4, 5), np.eye(4), np.eye(4)) == 0
