"""Quick pictures: outlines lie where the labels are, in their colours, with physical proportions."""

from __future__ import annotations

import numpy as np
import pytest

from medunet.report.colours import label_colours
from medunet.report.planes import Overlay, disagreeing_planes
from medunet.report.raster import outlined


def of_colour(picture: np.ndarray, colour: str) -> tuple[np.ndarray, np.ndarray]:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.nonzero((picture[: -20 or None] == wanted).all(axis=2))


def square(low: int, high: int) -> np.ndarray:
    labels = np.zeros((40, 40), np.uint8)
    labels[low:high, low:high] = 3
    return labels


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 3.0), (2.5, 1.0)])
def test_the_outline_has_its_place_colour_and_proportions(spacing: tuple[float, float]) -> None:
    """The square of 20 voxels is half of the picture, whatever the voxels' size."""
    picture = outlined(Overlay({"cell": 3}, spacing, reference=square(10, 30)), width=400)
    rows, columns = of_colour(picture, label_colours(1)[0])
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(spacing[1] / spacing[0], rel=0.03)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(200, abs=3)
    inside = picture[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
    assert inside.tolist() == [0, 0, 0], "an outline, not an area"


def test_a_single_picture_is_shown_bare_and_outlined() -> None:
    image = np.full((40, 40), 100.0)
    image[0] = 0
    picture = outlined(Overlay({"cell": 3}, (1.0, 1.0), image, square(10, 30), square(12, 32)), width=400)
    _, columns = of_colour(picture, label_colours(1)[0])
    assert columns.min() > 200


def test_planes_go_through_most_wrong_voxels_and_ignored_ones_are_not_wrong() -> None:
    reference = np.zeros((8, 9, 10), np.uint8)
    reference[1:4, 1:4, 1:4] = 1
    prediction = reference.copy()
    prediction[6, 7, 8] = 1
    reference[0, 0, :9] = 255
    overlay = Overlay({"a": 1}, (1.0, 1.0, 1.0), None, reference, prediction)
    assert [p.title for p in disagreeing_planes(overlay, 255)] == [
        "XY plane 9 of 10",
        "XZ plane 8 of 9",
        "YZ plane 7 of 8",
    ]
    right = Overlay({"a": 1}, (1.0, 1.0, 1.0), None, reference, np.where(reference == 255, 0, reference))
    assert disagreeing_planes(right, 255)[0].title == "XY plane 2 of 10", "nothing is wrong: the largest area"


@pytest.mark.slow
@pytest.mark.parametrize("labels", [1, 30, 100])
@pytest.mark.parametrize("shape", [(300, 20, 4), (5, 6, 7), (200, 3), (1, 1)])
def test_any_shape_and_many_long_names_keep_the_width(
    shape: tuple[int, ...], labels: int, rng: np.random.Generator
) -> None:
    names = {f"a structure with a long name {'$_<' * (n % 3)} {n}": n + 1 for n in range(labels)}
    reference = rng.integers(0, labels + 1, shape).astype(np.uint8)
    image = np.full(shape, np.nan, np.float32)
    picture = outlined(Overlay(names, (1.0, 0.5, 4.0)[: len(shape)], image, reference, reference), "t" * 200)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (900, 3) and picture.shape[0] < 1400


def test_ignored_voxels_are_darker() -> None:
    image, reference = np.arange(8000).reshape(20, 20, 20) % 97, np.zeros((20, 20, 20), np.uint8)
    reference[10:] = 255
    prediction = np.zeros_like(reference)
    prediction[3, 4, 5] = 1
    overlay = Overlay({"a": 1}, (1.0, 1.0, 1.0), image, reference, prediction)
    plain, dark = outlined(overlay, ignore=254), outlined(overlay, ignore=255)
    changed = (dark.astype(int) - plain).sum(axis=2)
    assert changed.min() < -200 and changed[:, :100].max() == 0
