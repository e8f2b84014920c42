"""Surface distances against all pairs of points, SciPy, scikit-image and MONAI."""

from __future__ import annotations

from math import isnan, sqrt

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from medunet.metrics.surface import surface, surface_scores, worst_surface_scores


def blobs(rng: np.random.Generator, shape: tuple[int, ...], share: float = 0.25) -> np.ndarray:
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 1.2)
    return smooth > np.quantile(smooth, 1 - share)


def plain_surface(mask: np.ndarray) -> np.ndarray:
    """SciPy's erosion with background beyond the image."""
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


def directed(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all pairs of surface points: slow and plain."""
    apart = cdist(np.argwhere(plain_surface(prediction)) * spacing, np.argwhere(plain_surface(reference)) * spacing)
    return apart.min(axis=1), apart.min(axis=0)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 33), (1.0, 1.0)), ((30, 36), (0.4, 2.5)), ((14, 15, 13), (1.0, 1.0, 1.0)), ((16, 15, 9), (0.7, 0.9, 4.0))],
)
def test_agrees_with_all_pairs(shape: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> None:
    prediction, reference = blobs(rng, shape), blobs(rng, shape)
    there, back = directed(prediction, reference, spacing)
    scores = surface_scores(prediction, reference, spacing, tolerance=1.5)
    assert scores.hausdorff == pytest.approx(max(there.max(), back.max()))
    assert scores.hausdorff95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert scores.mean_distance == pytest.approx((there.sum() + back.sum()) / (there.size + back.size))
    near = np.sum(there <= 1.5) + np.sum(back <= 1.5)
    assert scores.surface_dice == pytest.approx(near / (there.size + back.size))


def test_agrees_with_distance_transforms_and_scikit_image(rng: np.random.Generator) -> None:
    from skimage.metrics import hausdorff_distance

    prediction, reference = blobs(rng, (24, 20, 18)), blobs(rng, (24, 20, 18))
    isotropic = surface_scores(prediction, reference, (1.0, 1.0, 1.0), 1.0)
    assert isotropic.hausdorff == pytest.approx(hausdorff_distance(plain_surface(prediction), plain_surface(reference)))
    spacing = (0.5, 1.0, 3.0)
    to_reference = ndimage.distance_transform_edt(~plain_surface(reference), sampling=spacing)
    to_prediction = ndimage.distance_transform_edt(~plain_surface(prediction), sampling=spacing)
    farthest = max(to_reference[plain_surface(prediction)].max(), to_prediction[plain_surface(reference)].max())
    assert surface_scores(prediction, reference, spacing, 1.0).hausdorff == pytest.approx(farthest)


# MONAI 1.6.1 calls its own function with an argument that it has deprecated.
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
def test_agrees_with_monai(rng: np.random.Generator) -> None:
    """The definitions are MONAI's wherever both masks hold something; in one-hot form, channel 1."""
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    prediction, reference = blobs(rng, (20, 18, 16)), blobs(rng, (20, 18, 16))
    spacing = (0.8, 1.0, 2.5)

    def hot(mask: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))

    pair = hot(prediction), hot(reference)
    scores = surface_scores(prediction, reference, spacing, 2.0)
    assert scores.hausdorff == pytest.approx(compute_hausdorff_distance(*pair, spacing=spacing).item(), rel=1e-5)
    percentile = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing).item()
    assert scores.hausdorff95 == pytest.approx(percentile, rel=1e-5)
    mean = compute_average_surface_distance(*pair, symmetric=True, spacing=spacing).item()
    assert scores.mean_distance == pytest.approx(mean, rel=1e-5)
    nsd = compute_surface_dice(*pair, class_thresholds=[2.0], spacing=spacing).item()
    assert scores.surface_dice == pytest.approx(nsd, rel=1e-5)


def test_shifted_cube_has_known_distances() -> None:
    reference, prediction = np.zeros((2, 20, 20, 20), bool)
    reference[5:10, 5:10, 5:10] = True
    prediction[5:10, 5:10, 7:12] = True
    scores = surface_scores(prediction, reference, (1.0, 1.0, 3.0), tolerance=6.0)
    assert scores.hausdorff == 6.0
    assert scores.surface_dice == 1.0
    assert surface_scores(prediction, reference, (1.0, 1.0, 3.0), tolerance=0.5).surface_dice < 0.6


def test_a_tolerance_equal_to_a_float_spacing_is_met() -> None:
    reference, prediction = np.zeros((2, 12), bool)
    reference[3] = prediction[6] = True
    assert surface_scores(prediction, reference, (0.1,), tolerance=0.3).surface_dice == 1.0


def test_percentile_is_of_each_direction_and_not_of_both_pooled() -> None:
    """One far point among a hundred near ones moves a pooled percentile little; here it is one of two."""
    reference, prediction = np.zeros((2, 60, 60), bool)
    reference[10:40, 10] = True
    prediction[10, 10] = prediction[10, 50] = True
    scores = surface_scores(prediction, reference, (1.0, 1.0), 1.0)
    assert scores.hausdorff95 == pytest.approx(np.percentile([0, 40], 95))


def test_objects_have_a_surface_at_the_border_of_the_image() -> None:
    assert surface(np.ones((4, 4), bool)).sum() == 12


def test_a_single_slice_is_scored_like_a_picture(rng: np.random.Generator) -> None:
    prediction, reference = blobs(rng, (30, 25)), blobs(rng, (30, 25))
    flat = surface_scores(prediction, reference, (1.0, 2.0), 1.0)
    assert surface_scores(prediction[..., None], reference[..., None], (1.0, 2.0, 5.0), 1.0) == flat


def test_surface_equals_erosion_in_any_shape(rng: np.random.Generator) -> None:
    for shape in ((9, 8), (7, 6, 5), (2, 9, 3)):
        mask = rng.random(shape) > 0.3
        np.testing.assert_array_equal(surface(mask), plain_surface(mask))


def test_empty_sides() -> None:
    empty, full = np.zeros((4, 6), bool), np.ones((4, 6), bool)
    assert isnan(surface_scores(empty, empty, (1.0, 1.0), 1.0).hausdorff95)
    worst = worst_surface_scores((4, 6), (1.0, 2.0))
    assert worst.hausdorff95 == worst.mean_distance == sqrt(4**2 + 12**2)
    assert surface_scores(empty, full, (1.0, 2.0), 1.0) == surface_scores(full, empty, (1.0, 2.0), 1.0) == worst
