"""Volume and Grid: refuse what is no volume, know spacing and shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError
from medunet.volume import Grid, Volume, check_affine


def test_shape_channels_and_spacing() -> None:
    volume = Volume(np.zeros((2, 4, 5, 6), np.int16), np.diag([0.5, 2.0, 3.0, 1.0]), "um")
    assert (volume.dimensions, volume.channels, volume.shape) == (3, 2, (4, 5, 6))
    assert volume.spacing == (0.5, 2.0, 3.0)


def test_two_dimensional_volume_keeps_a_full_affine() -> None:
    volume = Volume(np.zeros((1, 4, 5)), np.diag([0.5, 2.0, 3.0, 1.0]), "pixel")
    assert volume.dimensions == 2
    assert volume.spacing == (0.5, 2.0)
    assert volume.affine.shape == (4, 4)


@settings(deadline=None, max_examples=50)
@given(
    angle=st.floats(0, 6.28),
    spacing=st.tuples(*[st.floats(1e-7, 1e4)] * 3),
)
def test_spacing_survives_rotation_in_any_unit(angle: float, spacing: tuple[float, float, float]) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = Volume(np.zeros((1, 2, 2, 2)), turn @ np.diag([*spacing, 1.0]))
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-12)


@pytest.mark.parametrize(
    ("array", "affine", "unit", "said"),
    [
        (np.zeros((4, 5)), np.eye(4), "mm", r"\(4, 5\)"),
        (np.zeros((1, 1, 1, 1, 1)), np.eye(4), "mm", "is no volume"),
        (np.zeros((1, 4, 0)), np.eye(4), "mm", "at least one voxel"),
        (np.zeros((1, 4, 4), complex), np.eye(4), "mm", "complex128"),
        (np.zeros((1, 4, 4)), np.eye(4), "inch", "'inch'"),
        (np.zeros((1, 4, 4)), np.eye(3), "mm", "4x4"),
        (np.zeros((1, 4, 4)), np.full((4, 4), np.nan), "mm", "finite"),
        (np.zeros((1, 4, 4)), np.diag([1.0, 0, 1, 1]), "mm", "singular"),
    ],
)
def test_refuses_what_is_no_volume(array: np.ndarray, affine: np.ndarray, unit: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Volume(array, affine, unit)


def test_parallel_axes_are_singular_and_tiny_voxels_are_not() -> None:
    parallel = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(DataError, match="singular"):
        check_affine(parallel, "scan")
    check_affine(np.diag([4e-6, 4e-6, 4e-6, 1]), "four nanometres in millimetres")


def test_with_array_stays_on_the_grid() -> None:
    volume = Volume(np.zeros((3, 4, 5, 6)), np.diag([1.0, 2, 3, 1]), "um")
    labels = volume.with_array(np.ones((1, 4, 5, 6), np.uint8))
    assert labels.affine is volume.affine and labels.unit == "um" and labels.channels == 1
    with pytest.raises(DataError, match=r"\(5, 4, 6\).*\(4, 5, 6\)"):
        volume.with_array(np.ones((1, 5, 4, 6)))


def test_grid_measures_like_its_volume() -> None:
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    grid = Grid((4, 5), 1, affine, "um", "uint8", "tiff")
    assert grid.spacing == Volume(np.zeros((1, 4, 5)), affine, "um").spacing
    assert grid.dimensions == 2
