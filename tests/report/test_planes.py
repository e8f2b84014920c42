"""Planes: which way up, which slice, which proportions."""

from __future__ import annotations

import numpy as np
import pytest

from medunet.report.planes import Overlay, reoriented, shown_planes


def ras_scan() -> np.ndarray:
    """Axes right, anterior, superior; each voxel says where it is: 100 x + 10 y + z."""
    x, y, z = np.indices((4, 5, 3))
    return 100 * x + 10 * y + z


def test_two_dimensional_pictures_keep_x_to_the_right_and_y_down() -> None:
    image = np.arange(12).reshape(4, 3)
    (plane,) = shown_planes(Overlay({}, (0.5, 2.0), image))
    np.testing.assert_array_equal(plane.image, image.T)
    assert plane.extent == (3 * 2.0, 4 * 0.5)


def test_radiological_convention() -> None:
    """Right on the left, anterior up (axial) or on the left (sagittal), superior up."""
    labels = np.zeros((4, 5, 3), int)
    labels[1, 2, 1] = 1
    overlay = Overlay({"a": 1}, (1.0, 2.0, 3.0), ras_scan(), labels, radiological=True)
    axial, coronal, sagittal = shown_planes(overlay)
    assert (axial.image[0, 0], axial.image[-1, -1]) == (341, 1)
    assert (coronal.image[0, 0], coronal.image[-1, -1]) == (322, 20)
    assert (sagittal.image[0, 0], sagittal.image[-1, -1]) == (142, 100)
    assert (axial.edges, coronal.edges, sagittal.edges) == ("RLAP", "RLSI", "APSI")
    assert axial.extent == (10.0, 4.0) and coronal.extent == (9.0, 4.0) and sagittal.extent == (9.0, 10.0)
    assert axial.title == "axial 2 of 3"


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_any_stored_orientation_gives_the_same_picture(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """The scan is stored with permuted and flipped axes; nibabel makes the stored form and its affine."""
    import nibabel

    affine = np.diag((1.0, 2.0, 3.0, 1.0))
    turn = np.column_stack([axes, signs]).astype(float)
    stored = nibabel.orientations.apply_orientation(ras_scan(), turn)
    stored_affine = affine @ nibabel.orientations.inv_ornt_aff(turn, (4, 5, 3))
    spacing = tuple(np.linalg.norm(stored_affine[:3, :3], axis=0))
    upright = reoriented(Overlay({"a": 122}, spacing, stored, stored), stored_affine)
    expected = Overlay({"a": 122}, (1.0, 2.0, 3.0), ras_scan(), ras_scan(), radiological=True)
    for plane, wanted in zip(shown_planes(upright), shown_planes(expected), strict=True):
        np.testing.assert_array_equal(plane.image, wanted.image)
        assert plane.steps == wanted.steps and plane.title == wanted.title


def test_slices_go_through_the_largest_area_of_the_reference() -> None:
    reference, prediction = np.zeros((2, 8, 9, 10), int)
    reference[2:5, 3, 7] = 2
    reference[2, 3, 6] = 2
    prediction[:, :, 1] = 2
    chosen = [plane.title for plane in shown_planes(Overlay({"a": 2}, (1, 1, 1), None, reference, prediction))]
    assert chosen == ["XY plane 8 of 10", "XZ plane 4 of 9", "YZ plane 3 of 8"]
    empty = np.zeros_like(reference)
    by_prediction = shown_planes(Overlay({"a": 2}, (1, 1, 1), None, empty, prediction))
    assert by_prediction[0].title == "XY plane 2 of 10"
    assert shown_planes(Overlay({"a": 2}, (1, 1, 1), None, empty, empty))[0].title == "XY plane 6 of 10"


def test_large_pictures_are_thinned_without_changing_their_size_or_labels() -> None:
    labels = np.full((3000, 40), 7, np.uint8)
    (plane,) = shown_planes(Overlay({"a": 7}, (0.1, 0.1), None, labels))
    assert max(plane.shape) <= 1024 and plane.extent == pytest.approx((4.2, 300.0), rel=0.1)
    assert np.unique(plane.reference).tolist() == [7]


def test_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one 2-D or 3-D shape"):
        Overlay({}, (1.0, 1.0), np.zeros((3, 4)), np.zeros((4, 3)))
